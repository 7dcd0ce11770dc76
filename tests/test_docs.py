"""The documents: every file, module and link that they name exists, their commands parse, and their example runs."""

import ast
import re
import runpy
import shlex
from functools import cache
from pathlib import Path

import pytest

from search.terminal.parser import build_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = ("spaces", "objectives", "search")
# What follows one of these is a file of the project, or a folder.
_PATH = re.compile(r"(?<![\w/.-])(?:spaces|objectives|search|tests|benchmarks|docs|examples)/[\w./*-]*\w/?")
_MODULE = re.compile(r"(?<![\w/.-])(?:spaces|objectives|search)(?:\.[A-Za-z_]\w*)+")
_IMPORT = re.compile(r"from ((?:spaces|objectives|search)[\w.]*) import ([\w, ]+)")
_LINK = re.compile(r"\]\(([^)#:\s]*)(#[^)\s]*)?\)")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@cache
def names_in(module: str) -> set[str]:
    """What a module defines or imports, and the modules in it; of a package also what it makes when asked."""
    path = ROOT.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = {child.stem for child in path.glob("*")} if path.is_dir() else set()
    for node in ast.walk(ast.parse(text_of(source))) if source.exists() else ():
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.alias(name=name):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
    return found


def exists(dotted: str) -> bool:
    """Whether a dotted name leads to a module, or to a name in one."""
    module, _, name = dotted.rpartition(".")
    path = ROOT.joinpath(*dotted.split("."))
    return path.is_dir() or path.with_suffix(".py").exists() or (bool(module) and exists(module) and name in names_in(module))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {"#" + re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path) -> None:
    text = text_of(page)
    paths = {path for path in _PATH.findall(text) if not any(ROOT.glob(path.rstrip("/")))}
    assert not paths, "no such file"
    named = {name for name in _MODULE.findall(text) if not name.endswith(".md")}
    assert not {name for name in named if not exists(name)}, "no such module"
    for module, names in _IMPORT.findall(text):
        assert {name.strip() for name in names.split(",")} <= names_in(module), module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in _LINK.findall(text_of(page)):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}{anchor}"


def test_every_page_is_in_the_index() -> None:
    linked = {(ROOT / "docs" / target).resolve() for target, _ in _LINK.findall(text_of(ROOT / "docs" / "README.md"))}
    assert {page for page in PAGES if page.parent == ROOT / "docs" and page.name != "README.md"} <= linked


def test_every_room_is_in_the_architecture() -> None:
    text = text_of(ROOT / "docs" / "architecture.md")
    rooms = {path.parent.name for package in PACKAGES for path in (ROOT / package).glob("*/__init__.py")}
    assert rooms <= set(re.findall(r"`(\w+)/`", text))


def test_the_readme_is_short() -> None:
    assert len(text_of(ROOT / "README.md").splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page: Path) -> None:
    for line in re.findall(r"^ *python run_search\.py ([^#\n]+)", text_of(page), re.MULTILINE):
        words = shlex.split(line.replace(" ...", ""))
        assert build_parser().parse_args(words).command == words[0]


def test_the_page_of_options_is_current() -> None:
    written = runpy.run_path(str(ROOT / "docs" / "options.py"))
    assert text_of(written["PAGE"]) == written["page"](), "run: python docs/options.py"


@pytest.mark.slow
def test_the_example_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = runpy.run_path(str(ROOT / "examples" / "own_model.py"))
    assert len(done["run"].trials) == done["options"]["trials"]
    assert done["run"].best("flops=50%").kept["macs"] <= 0.5
    assert (tmp_path / "runs" / "example" / "export" / "flops50" / "model.safetensors").exists()
    assert capsys.readouterr().out.splitlines()[-1].startswith("runs/example-images/diagonal/0.png: ")
