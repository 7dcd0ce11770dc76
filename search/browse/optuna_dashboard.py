"""optuna-dashboard on a snapshot of runs' studies: what is looked at, or changed, there is a copy in memory."""

import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from search.browse.server import serve_application
from search.layout import JOURNAL
from search.masking import is_masked, masked
from search.report.comparison import run_names
from search.run.options import stored_options
from search.study.database import reason
from search.study.replay import journal_numbers
from spaces.errors import ConfigError, RunError, first_line
from spaces.files import cut_torn_line
from spaces.scratch import Scratch


def check_installed() -> None:
    """Raise unless optuna-dashboard is there.

    Raises:
        ConfigError: it is not.
    """
    try:
        import a2wsgi  # noqa: F401
        import optuna_dashboard  # noqa: F401
    except ImportError as error:
        raise ConfigError("optuna-dashboard is not installed: pip install 'vit-compression-search[dashboard]'") from error


def snapshot(directories: Sequence[Path], url: str | None = None) -> BaseStorage:
    """The studies of some runs as they are now, in memory; those that searches write are only read, and left alone.

    Args:
        directories: of the runs, for whose names their studies are called.
        url: of the database that the runs are in; by default the one that each was launched with.

    Raises:
        RunError: a study cannot be read, or is not there.
    """
    copies = InMemoryStorage()
    for name, directory in zip(run_names([str(directory) for directory in directories]), directories, strict=True):
        stored = url or stored_options(directory).get("storage")
        if stored is None:
            _copy_journal(directory / JOURNAL, copies, name)
        else:
            _copy_database(stored, directory, copies, name)
    return copies


def serve_dashboard(storage: BaseStorage, listener: socket.socket, host: str) -> None:
    """Serve optuna-dashboard until Ctrl-C, to requests that name this server as somebody who may reach it does."""
    from a2wsgi import WSGIMiddleware
    from optuna_dashboard import wsgi

    served: Any = WSGIMiddleware(wsgi(storage))  # its types of ASGI are not Starlette's
    serve_application(served, listener, host)


def _copy_journal(path: Path, copies: BaseStorage, name: str) -> None:
    if not path.exists():
        raise RunError(f"no study in {path.parent} ({path.name} is missing): start a search with launch --output")
    journal_numbers(path)
    with Scratch() as folder:
        copied = folder / path.name
        shutil.copyfile(path, copied)
        cut_torn_line(copied)  # the search was writing it
        try:
            storage = JournalStorage(JournalFileBackend(str(copied)))
            (study,) = optuna.get_all_study_names(storage)
            optuna.copy_study(from_study_name=study, from_storage=storage, to_storage=copies, to_study_name=name)
        except Exception as error:  # every line was checked, but Optuna reads them its own way
            raise RunError(f"{path} cannot be read ({first_line(error)}): restore it") from error


def _copy_database(url: str, directory: Path, copies: BaseStorage, name: str) -> None:
    if is_masked(url):
        raise RunError(f"{directory} does not keep the password of {url}: give --storage with it")
    study = directory.resolve().name
    try:
        with _reading(url) as storage:
            optuna.copy_study(from_study_name=study, from_storage=storage, to_storage=copies, to_study_name=name)
    except Exception as error:  # damaged rows make Optuna and the drivers raise what they like
        raise RunError(
            f"the study {study!r} in {masked(url)} cannot be read ({reason(error, url)}): correct --storage"
        ) from error


@contextmanager
def _reading(url: str) -> Iterator[RDBStorage]:
    storage = RDBStorage(url, skip_table_creation=True)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()
