"""The files around the code agree with it: version, metadata, formats of the tools that read them."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import spaces

ROOT = Path(__file__).parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ["spaces", "objectives", "search"]


def yaml_of(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_version_is_said_once() -> None:
    """The build reads it without importing the packages; a citation and the changelog must follow."""
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "spaces.version.__version__"}
    assert yaml_of(ROOT / "CITATION.cff")["version"] == spaces.__version__
    assert f"\n## {spaces.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_carry_their_types(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()
    assert "py.typed" in PYPROJECT["tool"]["setuptools"]["package-data"][package]


def test_the_licence_is_the_one_that_is_named() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
    assert PYPROJECT["project"]["license"] == yaml_of(ROOT / "CITATION.cff")["license"] == "Apache-2.0"


def test_hooks_download_nothing() -> None:
    (repository,) = yaml_of(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    assert [hook["language"] for hook in repository["hooks"]] == ["system"] * 3
    assert all(hook["entry"].startswith(".venv/bin/") for hook in repository["hooks"])


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem)
def test_issue_forms_ask_for_something(path: Path) -> None:
    form = yaml_of(path)
    assert form["name"] and form["description"]
    asked = [entry for entry in form["body"] if entry.get("validations", {}).get("required")]
    assert asked and all(entry["attributes"]["label"] for entry in asked)
    assert len({entry["id"] for entry in form["body"]}) == len(form["body"])
