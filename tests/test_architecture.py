"""The shape of the code base: imports run one way between packages and between their rooms, and nothing runs in a circle."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each may import those before it.
PACKAGES = ["spaces", "objectives", "search", "run_search"]
FORBIDDEN = {"spaces": {"optuna", "ray", "pandas", "fvcore"}, "objectives": {"optuna", "ray", "pandas"}}
# Rooms, and modules that stand beside them, of every package: each may import those before it.
ROOMS = {
    "spaces": "version lazy errors format_number schema locks scratch files tensors modules allocation sites statistics models "
    "branches tokens operators vit factors folder",
    "objectives": "units cost score runtime outcomes error latency pictures data training deploy objective profile divergence "
    "sensitivity frames merging dropping narrowing measured_frames dense_model measures evaluator forecast recipes",
    "search": "layout masking paths values optuna_internals pareto trial evidence budgets runners samplers config run report "
    "study browse fidelity deploy driver terminal",
}


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).glob("**/*.py")) or [ROOT / f"{package}.py"]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for package in PACKAGES for path in files_of(package)}


def imported(path: Path) -> Iterator[str]:
    """Modules that a file imports anywhere in it, also within functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package: str) -> None:
    above = set(PACKAGES[PACKAGES.index(package) + 1 :]) | FORBIDDEN.get(package, set()) | {"tests", "benchmarks"}
    for path in files_of(package):
        assert not {name.split(".")[0] for name in imported(path)} & above, (
            f"{path.relative_to(ROOT)} imports against the arrow"
        )


@pytest.mark.parametrize("package", list(ROOMS))
def test_rooms_import_one_way(package: str) -> None:
    order = ROOMS[package].split()
    assert sorted({name.split(".")[1] for name in MODULES if name.startswith(f"{package}.")}) == sorted(order)
    for module, path in MODULES.items():
        if not module.startswith(f"{package}."):
            continue
        room = module.split(".")[1]
        for name in imported(path):
            if name.startswith(f"{package}."):
                other = name.split(".")[1]
                assert order.index(other) <= order.index(room), f"{module} imports {name}, whose room comes after its own"
            assert name != package, f"{module} imports the face of its own package"


def test_no_circle() -> None:
    """A CycleError names one."""
    graph = {module: {name for name in imported(path) if name in MODULES} for module, path in MODULES.items()}
    assert set(TopologicalSorter(graph).static_order()) == set(MODULES)


@pytest.mark.parametrize("package", PACKAGES[:3])
def test_our_packages_are_imported(package: str) -> None:
    """`spaces` and `objectives` are also names of packages on PyPI."""
    assert Path(importlib.import_module(package).__file__ or "").parent == ROOT / package


def test_nothing_is_pickled() -> None:
    for module, path in MODULES.items():
        assert "cloudpickle" not in imported(path), module
        assert "pickle.load" not in path.read_text(encoding="utf-8"), module
        assert "torch.save" not in path.read_text(encoding="utf-8"), module


@pytest.mark.slow
def test_loading_needs_neither_optuna_nor_ray() -> None:
    code = "import sys, spaces; print(sorted({'optuna', 'ray', 'pandas', 'fvcore', 'search'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
