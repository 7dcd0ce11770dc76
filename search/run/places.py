"""What a path is that a command was given: a run, an exported model, or a folder of those; and which command takes it."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from search.layout import LOCK, SUMMARY
from spaces.errors import CheckpointError, RunError
from spaces.folder.description import CONFIG

_RESULTS = ("pareto.json", "study.journal")
_OF_A_RUN = (*_RESULTS, "config.yaml", LOCK)  # of one that begins, too
_ABOVE = 3  # folders above a path in which it is looked for what it belongs to
_NAMED = 5  # of the exported models that are told


def is_run(path: Path) -> bool:
    """Whether a folder has a file of a run, if only of one that begins."""
    return any((path / name).exists() for name in _OF_A_RUN)


def check_exported(path: Path, command: str) -> None:
    """Raise where a path is known to be no exported model, for a command that takes one.

    Raises:
        CheckpointError: it is a run, or lies in one, or is a file of an exported model.
    """
    if _is_export(path):
        return
    if path.is_file() and _is_export(path.parent):
        raise CheckpointError(f"{path} is a file of an exported model: give {command} its folder, {path.parent}")
    if (run := _run_of(path)) is not None:
        what = "a run of a search" if run == path else f"part of the run {run}"
        found = list(islice(_exports_of(run), _NAMED + 1))
        more = " or another one there" if len(found) > _NAMED else ""
        models = " or ".join(map(str, found[:_NAMED])) + more
        how = f"give {command} {models}" if found else f"python run_search.py export {run} makes one"
        raise CheckpointError(f"{path} is {what}, not an exported model: {how}")


def check_run(path: Path) -> None:
    """Raise where a path is known to be an exported model, or part of a run, for a command that takes a run.

    Raises:
        RunError: it is one.
    """
    if is_run(path):
        return
    run = _run_of(path)
    if _is_export(path):
        origin = "" if run is None else f"; it was exported from the run {run}"
        raise RunError(f"{path} is an exported model, not a run of a search: predict and measure take it{origin}")
    if run is not None:
        raise RunError(f"{path} is part of a run of a search: give the run itself, {run}")


def check_is_run(directory: Path) -> None:
    """Raise where a directory has no results of a run, before anything is imported that reads them.

    Raises:
        RunError: it has none.
    """
    check_run(directory)
    if not (directory / SUMMARY).exists():
        raise no_run(directory, SUMMARY)


def check_any_run(directories: Sequence[Path]) -> None:
    """Raise where none of some directories has results of a run.

    Raises:
        RunError: none has; it is the first one's.
    """
    problems = list[RunError]()
    for directory in directories:
        try:
            check_is_run(directory)
            return
        except RunError as error:
            problems.append(error)
        except OSError:  # whoever reads it says why
            return
    raise problems[0]


def no_run(directory: Path, name: str) -> RunError:
    """What is told of a directory in which a table of a run is missing."""
    return RunError(f"no search in {directory} ({name} is missing): start one with launch --output")


def check_no_export(path: Path) -> None:
    """Raise where a run would be written into an exported model.

    Raises:
        RunError: it would.
    """
    if _is_export(path) and not is_run(path):
        raise RunError(f"{path} is an exported model, which predict and measure take: choose another --output for the run")


def _is_export(path: Path) -> bool:
    """Whether a folder has the description of a compressed model; models of others have a file of that name too."""
    try:
        return '"allocation"' in (path / CONFIG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _run_of(path: Path) -> Path | None:
    """The run that a path is or lies in."""
    if not path.exists():
        return None
    if is_run(path):
        return path
    above = list(path.parents or path.absolute().parents)[:_ABOVE]
    return next((folder for folder in above if any((folder / name).exists() for name in _RESULTS)), None)


def _exports_of(run: Path) -> Iterator[Path]:
    """Folders of exported models in a run."""
    yield from sorted(folder for folder in run.glob("export/*") if _is_export(folder) and not folder.name.startswith("."))
