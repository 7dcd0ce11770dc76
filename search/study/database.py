"""Where the study of a run is kept: in a journal file in its directory, or in a database that Optuna knows."""

import json
import os
import socket
import uuid
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from sqlalchemy import Select, func, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session

from search.layout import JOURNAL
from search.masking import masked, secrets_of, without_secrets
from search.optuna_internals import GuardedStorage, models, trial_id
from search.study import rows
from search.study.replay import STUDY, journal_numbers
from spaces.errors import CompressionError, RunError, first_line
from spaces.files import cut_torn_line

IDENTITY, WRITER = "identity", "writer"  # attributes of a study: which search it is, and the process that may add to it
NUMBER, SCORE = "number", "score"  # attributes of every trial: the number of its proposal, and its score

_WAIT_SECONDS = 10  # for a server that does not answer
_WAITS = {"psycopg", "psycopg2", "pymysql", "mysqldb"}  # drivers with an option connect_timeout
_EXTRAS = {"postgresql": ("postgresql+psycopg", "postgresql"), "mysql": ("mysql+pymysql", "mysql")}
_ALLOWED = "sqlite:///FILE, postgresql+psycopg://USER:PASSWORD@HOST/DATABASE or mysql+pymysql://USER:PASSWORD@HOST/DATABASE"


class Database(GuardedStorage):
    """A database to which only the process that opened a study last can add trials, and none twice.

    Optuna repeats an insertion that failed, also where it is unclear whether it was carried out.

    Raises:
        RunError: another process has opened the study since; the trial is not added.
    """

    def __init__(self, url: URL) -> None:
        waits = url.get_driver_name() in _WAITS and "connect_timeout" not in url.query
        arguments = {"connect_args": {"connect_timeout": _WAIT_SECONDS}} if waits else {}
        self.writer = f"process {os.getpid()} on {socket.gethostname()} ({uuid.uuid4().hex[:8]})"
        # A server closes connections that were idle for the hours of a trial: each is tried before it is used.
        super().__init__(url.render_as_string(hide_password=False), {"pool_pre_ping": True, **arguments})
        self._read: list[FrozenTrial] = []
        self._widen()

    def insert(self, study_id: int, trial: FrozenTrial, session: Session) -> models.TrialModel:
        found = session.execute(_before(study_id)).one()
        if found.writer != json.dumps(self.writer):
            last = None if found.writer is None else json.loads(found.writer)
            raise RunError(f"the study {found.study_name!r} was taken over by {last}: this process adds nothing more to it")
        if found.number == json.dumps(trial.user_attrs[NUMBER]):
            return models.TrialModel.find_or_raise_by_id(found.newest, session)
        return rows.insert(study_id, found.trials or 0, trial, session)

    def trials(self, name: str) -> list[FrozenTrial]:
        """All trials of a study, which is the only one that is asked for; those that were read are not read again."""
        study_id = self.get_study_id_from_name(name)
        with Session(self.engine) as session:
            self._read += rows.read(study_id, max(map(trial_id, self._read), default=None), session)
        return list(self._read)

    def _widen(self) -> None:
        """MySQL's TEXT ends at 64 KiB, and the candidates that were screened for a proposal can need more."""
        if self.engine.dialect.name not in ("mysql", "mariadb"):
            return
        table = models.TrialSystemAttributeModel.__tablename__
        columns = {column["name"]: column for column in sqlalchemy.inspect(self.engine).get_columns(table)}
        if str(columns["value_json"]["type"]).split()[0] == "TEXT":
            with self.engine.begin() as connection:
                connection.execute(sqlalchemy.text(f"ALTER TABLE {table} MODIFY value_json MEDIUMTEXT"))


def open_study(
    directory: Path, objectives: int, storage: str | None = None, identity: str | None = None
) -> tuple[optuna.Study, BaseStorage]:
    """The study of a run and what it is kept in, to be given to `close`; only the holder of the run's lock may call this.

    Args:
        directory: of the run; its name is that of the study in a database.
        objectives: how many values a finished trial has, all of them minimised.
        storage: URL of a database; the journal file in the directory without.
        identity: says which search it is; a study that has none is accepted.

    Raises:
        RunError: the storage cannot be reached or read, or its study belongs to another search.
    """
    name, where = (STUDY, str(directory / JOURNAL)) if storage is None else (directory.resolve().name, masked(storage))
    opened = _open_journal(directory / JOURNAL) if storage is None else _connect(storage, directory)
    remedy = remedy_of(storage)
    try:
        study = optuna.create_study(study_name=name, storage=opened, directions=["minimize"] * objectives, load_if_exists=True)
        trials = trials_of(study, opened)
        _check(study, trials, f"the study {name!r} in {where}", objectives, identity, remedy)
        if identity is not None and not trials:
            study.set_user_attr(IDENTITY, identity)
        if isinstance(opened, Database):
            study.set_user_attr(WRITER, opened.writer)
    except (CompressionError, OSError, KeyboardInterrupt):
        close(opened)
        raise
    except Exception as error:  # damaged rows make Optuna and the drivers raise what they like
        close(opened)
        raise RunError(f"{where} cannot be read ({reason(error, storage)}): restore it, or {remedy}") from error
    return study, opened


def trials_of(study: optuna.Study, storage: BaseStorage) -> list[FrozenTrial]:
    """All trials of a study that `open_study` gave, in the order of their insertion."""
    return storage.trials(study.study_name) if isinstance(storage, Database) else study.get_trials(deepcopy=False)


def remedy_of(storage: str | None) -> str:
    """What to do where a storage cannot be used."""
    return "choose another --output" if storage is None else "choose another name of --output, or another --storage"


def close(storage: BaseStorage) -> None:
    """Give connections back."""
    if isinstance(storage, Database):
        storage.remove_session()
        storage.engine.dispose()


def reason(error: BaseException, url: str | None = None) -> str:
    """What the driver of a database said, in one line, without what must not be shown of the URL that it was given."""
    cause: Any = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
    return without_secrets(first_line(getattr(cause, "orig", None) or cause), url)


def _open_journal(path: Path) -> BaseStorage:
    path.parent.mkdir(parents=True, exist_ok=True)
    journal_numbers(path)
    cut_torn_line(path)
    path.with_name(path.name + ".lock").unlink(missing_ok=True)  # left by a writer that was killed
    try:
        return JournalStorage(JournalFileBackend(str(path)))
    except Exception as error:  # every line was checked, but Optuna reads them its own way
        raise RunError(f"{path} cannot be read ({first_line(error)}): restore it, or choose another --output") from error


def _connect(url: str, directory: Path) -> BaseStorage:
    shown, parsed = masked(url), _parse(url)
    if (directory / JOURNAL).exists():
        raise RunError(
            f"{directory} keeps its trials in {JOURNAL}, not in {shown}: leave out --storage, or choose another --output"
        )
    try:
        return Database(parsed)
    except ImportError as error:
        raise RunError(f"{shown}: {_missing_driver(parsed)}") from error
    except (NoSuchModuleError, LookupError, ValueError) as error:
        raise RunError(f"{shown} is not the URL of a database that is known here: write {_ALLOWED}") from error
    except RuntimeError as error:  # tables of another version of Optuna; what it says to do shows no URL
        raise RunError(f"{shown}: {reason(error, url)}") from error
    except (SQLAlchemyError, StorageInternalError, TypeError) as error:  # TypeError: an option that its driver does not have
        raise RunError(f"{shown} cannot be opened ({reason(error, url)}): {_repair(parsed)}") from error


def _repair(url: URL) -> str:
    """What to do where a database cannot be opened."""
    if url.get_backend_name() != "sqlite":
        return "start its server, or correct --storage"
    damaged = "restore the file from a backup where it is damaged, or " if Path(url.database or "").is_file() else ""
    return f"{damaged}correct --storage"


def _parse(url: str) -> URL:
    if any("@" in secret for secret in secrets_of(url)[:1] if secret in url.partition("?")[0]):
        raise RunError(f"{masked(url)} has a password with an @ in it: write %40 in its place")
    try:
        return make_url(url)
    except (SQLAlchemyError, ValueError) as error:
        raise RunError(f"{masked(url)} is not the URL of a database: write {_ALLOWED}") from error


def _missing_driver(url: URL) -> str:
    scheme, extra = _EXTRAS.get(url.get_backend_name(), (None, None))
    if extra is None:
        return f"the driver {url.get_driver_name()} is not installed: install it, or write {_ALLOWED}"
    if url.drivername == scheme:
        return f"the driver {url.get_driver_name()} is not installed: pip install 'vit-compression-search[{extra}]'"
    return f"the driver {url.get_driver_name()} is not installed: install it, or write {scheme}://..."


def _check(
    study: optuna.Study, trials: list[FrozenTrial], what: str, objectives: int, identity: str | None, remedy: str
) -> None:
    """Refuse a study that is not of this search."""
    if study.directions != [StudyDirection.MINIMIZE] * objectives:
        raise RunError(f"{what} has {len(study.directions)} objectives, this search minimises {objectives}: {remedy}")
    known = study.user_attrs.get(IDENTITY)
    if identity is not None and known is not None and known != identity:
        raise RunError(f"{what} is of another search, whose model or options differ: {remedy}")
    if not all(NUMBER in trial.user_attrs and SCORE in trial.user_attrs for trial in trials):
        raise RunError(f"{what} holds trials of another program: {remedy}")


def _before(study_id: int) -> Select[Any]:
    """Asks for what is checked before a trial is inserted.

    These are the study's name, its last writer, how many trials it has, and id and number of the newest one: what the only
    writer inserts again, not knowing that it is there, can be no other.
    """
    study, written = models.StudyModel, models.StudyUserAttributeModel
    trial, noted = models.TrialModel, models.TrialUserAttributeModel
    known = (
        select(trial.study_id, func.count().label("trials"), func.max(trial.trial_id).label("newest"))
        .where(trial.study_id == study_id)
        .group_by(trial.study_id)
        .subquery()
    )
    return (
        select(
            study.study_name,
            written.value_json.label("writer"),
            known.c.trials,
            known.c.newest,
            noted.value_json.label("number"),
        )
        .select_from(study)
        .outerjoin(known, known.c.study_id == study.study_id)
        .outerjoin(written, (written.study_id == study.study_id) & (written.key == WRITER))
        .outerjoin(noted, (noted.trial_id == known.c.newest) & (noted.key == NUMBER))
        .where(study.study_id == study_id)
    )
