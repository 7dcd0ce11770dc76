"""The options of a run as its directory keeps them: its paths lead to the same files from any folder, and when it was moved."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.config import SearchConfig, read_options
from search.layout import CONFIG
from search.masking import masked
from search.paths import absolute, moved
from search.runners.resources import ONE_LAUNCH, PLACEMENT
from spaces.errors import ConfigError, RunError


def stored_options(directory: Path) -> dict[str, Any]:
    """Options of the run in a directory; empty where there is none.

    What was inside of the run directory when they were written is sought where that is now.

    Raises:
        RunError: they cannot be read, or are of another format.
    """
    path = directory / CONFIG
    if not path.exists():
        return {}
    try:
        options = read_options(path, of_run=True)
    except ConfigError as error:
        raise RunError(f"{error}: restore it from a backup") from error
    if not options:
        raise RunError(f"{path} is empty: restore it from a backup, or remove it and give all options of the run again")
    before = options.get("output")
    return {**moved(options, before, directory), "output": str(directory)} if isinstance(before, str) and before else options


def stored_config(directory: Path) -> SearchConfig:
    """The configuration of the run in a directory.

    Raises:
        RunError: there is none, or it cannot be that of a run.
    """
    path, options = directory / CONFIG, stored_options(directory)
    if not options:
        raise RunError(f"{path} is missing: restore it from a backup, or launch the run again with all its options")
    if not options.get("model"):
        raise RunError(f"{path} names no model: restore it from a backup")
    try:
        return SearchConfig.from_flat(options)
    except (ConfigError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}): restore it from a backup") from error


def with_stored(directory: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a launch, and below them those of the run in a directory, but for what was said of one launch alone.

    Where one of `PLACEMENT` is given, all of them are: a run on a cluster goes on in one process by one flag. A model that is
    named by its folder brings its weights.

    Raises:
        RunError: those of the run cannot be read.
    """
    options = stored_options(directory)
    if options:
        stored_config(directory)
    elsewhere = ONE_LAUNCH | (PLACEMENT if PLACEMENT & given.keys() else frozenset())
    if ":" in str(given.get("model", "")):
        elsewhere |= {"checkpoint"}
    return {**{name: value for name, value in options.items() if name not in elsewhere}, **given}


def comparable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as two launches of one run are compared by: absolute paths, and a database without its password."""
    found = absolute(options)
    if isinstance(found.get("storage"), str):
        found["storage"] = masked(found["storage"])
    return found
