"""The directory of a run: made, locked for its one writer, and removed where nothing came of it."""

from pathlib import Path
from typing import IO

from search.config import SearchConfig
from search.layout import LOCK
from spaces.errors import RunError, why_not
from spaces.locks import lock_file


def lock_run(directory: Path) -> IO[str]:
    """Keep other processes from writing a run until what is returned is closed, or this process ends.

    Raises:
        RunError: another process writes it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    handle = (directory / LOCK).open("w")
    try:
        lock_file(handle)
    except BlockingIOError as error:
        handle.close()
        raise RunError(f"another process is at work in {directory}: wait for it, or choose another --output") from error
    except OSError as error:  # a network disk without locks
        handle.close()
        raise OSError(error.errno, error.strerror, str(directory / LOCK)) from error
    return handle


def default_output(config: SearchConfig) -> str:
    """runs/MODEL-SPACE, or runs/MODEL-RECIPE."""
    return f"runs/{config.model.model}-{config.study.recipe or config.study.space}"


def make_directory(directory: Path) -> None:
    """Make a run directory that can be written to.

    Raises:
        RunError: it cannot.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunError(f"cannot write to {directory}: {why_not(error)}") from error


def remove_if_empty(directory: Path) -> None:
    """Remove a run directory that holds nothing but its lock; factors, for one, are something that another try can use."""
    if [path.name for path in directory.iterdir()] == [LOCK]:
        (directory / LOCK).unlink()
        directory.rmdir()
