"""What a command imports: help and wrong arguments nothing that takes a second, and none of them what it does not use."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from local_folders import write_folder
from local_vits import MakeVit
from PIL import Image
from torch import Tensor

import objectives
import run_search
import search
import spaces
from objectives.recipes.names import RECIPE_NAMES
from objectives.recipes.registry import RECIPES

ROOT = Path(__file__).parents[1]
PACKAGES = [spaces, objectives, search]
HEAVY = {"torch", "timm", "ray", "optuna", "pandas", "matplotlib", "numpy", "scipy", "sklearn", "torchvision", "fvcore"}
# What reading the tables of a run takes, and drawing them with Plotly.
TABLES = {"pandas", "numpy"}
SERVED = """
import search.browse.server as server
server.serve = lambda directories, listener, host: server.page(server.Shown(directories).now()[1], live=True)
"""


def imported(code: str, *arguments: str) -> set[str]:
    """Those of `HEAVY` that a fresh process has imported after some code."""
    code = f"import sys\n{code}\nprint('imported:', *({HEAVY!r} & set(sys.modules)))"
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1].split()
    assert last[0] == "imported:"
    return set(last[1:])


def imported_by(status: int, *arguments: str | Path, before: str = "") -> set[str]:
    """The same after a command, which must end with this status."""
    code = f"""
import run_search
{before}
try:
    status = run_search.main(sys.argv[1:])
except SystemExit as end:  # of --help
    status = end.code
assert status == {status}, status
"""
    return imported(code, *map(str, arguments))


HELP = {command: (*[command][: len(command)], "--help") for command in
        ("", "launch", "inspect", "browse", "audit", "export", "measure", "predict")}  # fmt: skip
WRONG = {
    "flag": ("launch", "--modle", "vit_tiny_patch16_224"),
    "value": ("launch", "--model", "vit_tiny_patch16_224", "--trials", "0"),
    "recipe": ("launch", "--model", "vit_tiny_patch16_224", "--recipe", "gosph", "--target", "flops=50%"),
    "sampler": ("launch", "--sampler", "cmaes"),
    "target": ("launch", "--model", "vit_tiny_patch16_224", "--target", "flops=half"),
    "options": ("launch", "--config", "missing.yaml"),
    "format": ("export", "missing", "--format", "tflite"),
    "point": ("export", "missing", "--target", "flops=half"),
    "run": ("export", "missing"),
    "audit": ("audit", "tests"),
    "size": ("audit", "tests", "--points", "2"),
    "batch": ("measure", "tests", "--batch-sizes", "0"),
    "top": ("predict", "tests", "image.png", "--top", "0"),
    "browse": ("browse", "missing", "tests"),
    "text": ("browse", "--text", "missing"),
    "dashboard": ("browse", "--dashboard", "missing"),
    "inspect": ("inspect", "vit_tiny_patch16_224", "--multiple", "0"),
    "model": ("measure", "missing"),
    "folder": ("predict", "tests", "image.png"),
    "no model": ("launch", "--dataset", "digits"),
    "checkpoint": ("launch", "--model", "vit_tiny_patch16_224", "--checkpoint", "missing.pth", "--dataset", "digits"),
    "local-dir": ("launch", "--model", "local-dir:missing", "--dataset", "digits"),
    "images": ("launch", "--model", "vit_tiny_patch16_224", "--data-dir", "missing"),
    "inspected": ("inspect", "local-dir:missing"),
    "profile": ("inspect", "vit_tiny_patch16_224", "--profile"),
}


@pytest.fixture(scope="module")
def ends() -> dict[str, list[Any]]:
    """Of all these commands, one after another in a fresh process: status, and what of `HEAVY` it was the first to import."""
    code = f"""
import contextlib, io, json, sys, run_search
ends, before = {{}}, set()
for line in {[*HELP.values(), *WRONG.values()]!r}:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            status = run_search.main(list(line))
    except SystemExit as end:  # of --help
        status = end.code
    now = {HEAVY!r} & set(sys.modules)
    ends[" ".join(line)] = [status, sorted(now - before)]
    before = now
print(json.dumps(ends))
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found: dict[str, list[Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("command", HELP)
def test_help_imports_nothing_heavy(ends: dict[str, list[Any]], command: str) -> None:
    assert ends[" ".join(HELP[command])] == [0, []]


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_imports_nothing_heavy(ends: dict[str, list[Any]], name: str) -> None:
    assert ends[" ".join(WRONG[name])] == [2, []]


def test_a_name_that_timm_lacks_needs_timm_alone() -> None:
    assert imported_by(2, "inspect", "vit_of_nobody") == {"timm", "torch", "torchvision", "numpy"}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_nothing_heavy(package: object) -> None:
    assert imported(f"import {package.__name__}") == set()  # type: ignore[attr-defined]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_has_all_its_names(package: object) -> None:
    names = package.__all__  # type: ignore[attr-defined]
    for name in names:
        found = getattr(package, name)
        assert name == "__version__" or found.__name__ == name
        assert vars(package)[name] is found, "it is asked for once"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing  # type: ignore[attr-defined]


def test_the_names_told_without_the_registries_are_theirs() -> None:
    assert tuple(RECIPES) == RECIPE_NAMES


def test_browsing_needs_the_tables_alone(finished: Path) -> None:
    assert imported_by(0, "browse", "--text", finished) == TABLES
    assert imported_by(0, "browse", "--no-open", finished, before=SERVED) == TABLES


def test_predict_needs_timm_for_safetensors_alone(make_vit: MakeVit, images: Tensor, tmp_path: Path) -> None:
    folder, picture = tmp_path / "model", tmp_path / "picture.png"
    write_folder(folder, make_vit, images, formats=("onnx", "pt2"))
    Image.new("RGB", (20, 20)).save(picture)
    onnx = f"run_search.main({['predict', str(folder), str(picture), '--format', 'onnx']!r})"
    found = imported_by(0, "predict", folder, picture, "--format", "pt2", before=f"assert {onnx} == 0")
    assert found == {"torch", "torchvision", "numpy"}


def test_the_console_script_is_main() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert [resolve_name(place) for place in scripts.values()] == [run_search.main]
