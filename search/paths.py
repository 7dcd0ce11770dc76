"""Which options hold paths, and how those lead to the same files from any folder and after a run was moved."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PATHS = ("model", "checkpoint", "data_dir", "class_map", "storage", "output")

_PREFIXED = ("model", "storage")  # of these, only what begins so: local-dir:FOLDER, sqlite:///FILE?OPTIONS

_URL = re.compile(r"(sqlite(?:\+\w+)?:///|local-dir:)((?!:memory:|file:)[^?]+)(.*)", re.DOTALL)


def absolute(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options whose paths lead to the same files from any folder; what is a name, or is not there, stays as it is."""
    return {name: _absolute(name, value) if name in PATHS else value for name, value in options.items()}


def moved(options: Mapping[str, Any], before: str, now: Path) -> dict[str, Any]:
    """Options whose paths into a folder as it was called before lead into it as it is called now."""
    return {name: _moved(value, before, now) if name in PATHS else value for name, value in options.items()}


def placeless(name: str, value: Any) -> Any:
    """The value of an option without the folder of the file that it names, where it names one that may be moved."""
    if isinstance(value, str) and name == "class_map":
        return Path(value).name
    if isinstance(value, str) and name == "model" and value.startswith("local-dir:"):
        return f"local-dir:{Path(value).name}"
    return value


def _absolute(name: str, value: Any) -> Any:
    if not isinstance(value, str) or not value:
        return value
    start, path, end = _parts(value)
    if name in _PREFIXED:
        return f"{start}{_from_root(path)}{end}" if start else value
    return _from_root(value) if name == "output" or Path(value).exists() else value


def _moved(value: Any, before: str, now: Path) -> Any:
    if not isinstance(value, str):
        return value
    start, path, end = _parts(value)
    if not Path(path).is_absolute() or not Path(path).is_relative_to(before):
        return value
    return f"{start}{Path(_from_root(str(now))) / Path(path).relative_to(before)}{end}"


def _from_root(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100 (links stay as they are: they may lead elsewhere tomorrow)


def _parts(value: str) -> tuple[str, str, str]:
    """What comes before a path, the path, and what comes behind it."""
    match = _URL.fullmatch(value)
    return (match[1], match[2], match[3]) if match else ("", value, "")
