"""The shape of the code base: imports run one way, and our packages are the ones imported."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each may import those before it.
ORDER = ["spaces", "objectives", "search", "run_search"]
FORBIDDEN = {"spaces": {"optuna", "ray", "pandas", "fvcore"}, "objectives": {"optuna", "ray", "pandas"}}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", ORDER)
def test_imports_run_one_way(package: str) -> None:
    files = sorted((ROOT / package).glob("**/*.py")) or [ROOT / f"{package}.py"]
    above = set(ORDER[ORDER.index(package) + 1 :]) | FORBIDDEN.get(package, set()) | {"tests", "benchmarks"}
    for path in files:
        assert not imported(path) & above, f"{path.relative_to(ROOT)} imports against the arrow"


@pytest.mark.parametrize("package", ORDER[:3])
def test_our_packages_are_imported(package: str) -> None:
    """`spaces` and `objectives` are also names of packages on PyPI."""
    assert Path(importlib.import_module(package).__file__ or "").parent == ROOT / package


def test_nothing_is_pickled() -> None:
    for path in (path for package in ORDER[:3] for path in ROOT.glob(f"{package}/**/*.py")):
        assert "cloudpickle" not in imported(path)
        assert "pickle.load" not in path.read_text(encoding="utf-8")
        assert "torch.save" not in path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_loading_needs_neither_optuna_nor_ray() -> None:
    code = "import sys, spaces; print(sorted({'optuna', 'ray', 'pandas', 'fvcore', 'search'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
