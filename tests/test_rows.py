"""Rows of trials are those that Optuna writes, and are read as Optuna reads them."""

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.orm import Session

from search.optuna_internals import GuardedStorage, models
from search.study import rows

NAME = "study"


class Bulk(GuardedStorage):
    """Inserts with `rows`."""

    def insert(self, study_id: int, trial: FrozenTrial, session: Session) -> Any:
        return rows.insert(study_id, models.TrialModel.count(session), trial, session)


@pytest.fixture
def places(tmp_path: Path) -> Iterator[tuple[RDBStorage, Bulk]]:
    """Optuna's own storage and another, with a study each."""
    own, bulk = RDBStorage(f"sqlite:///{tmp_path}/own.db"), Bulk(f"sqlite:///{tmp_path}/bulk.db")
    for storage in (own, bulk):
        study = optuna.create_study(study_name=NAME, storage=storage, directions=["minimize"] * 3)
        for trial in trials():
            study.add_trial(trial)
    yield own, bulk
    for storage in (own, bulk):
        storage.remove_session()
        storage.engine.dispose()


def trials() -> list[FrozenTrial]:
    """Of every kind: values and parameters of all kinds, none at all, and texts that need escapes."""
    distributions = {
        "z": FloatDistribution(1e-5, 1.0, log=True),
        "a": IntDistribution(8, 64, step=8),
        "m": CategoricalDistribution(("x", None, 3)),
    }
    shared: dict[str, Any] = {"params": {"z": 1 / 3, "a": 24, "m": None}, "distributions": distributions}
    odd = {"text": "'Ärger' \N{PILE OF POO} \\ \"%s\"\x00", "none": None, "nested": {"1": [0.1, math.inf, 1e-300]}}
    made = [
        create_trial(values=[0.1, math.inf, -math.inf], user_attrs=odd, system_attrs={"noted": [1, [2]]}, **shared),
        create_trial(state=TrialState.PRUNED, user_attrs={"b": 1, "a": 2}, **shared),
        create_trial(state=TrialState.FAIL),
        create_trial(values=[1e300, 0.0, -1.5], system_attrs=odd),
    ]
    for second, trial in enumerate(made):
        trial.datetime_start = datetime(2026, 11, 27, 12, 0, second)
        trial.datetime_complete = datetime(2026, 11, 27, 12, 30, second, 123456)
    return made


def content(storage: RDBStorage) -> dict[str, list[Any]]:
    """All rows of all tables."""
    with closing(sqlite3.connect(str(storage.engine.url.database))) as connection:
        tables = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table' order by name")]
        return {table: connection.execute(f"select * from {table} order by 1").fetchall() for table in tables}


def test_rows_are_those_that_optuna_writes(places: tuple[RDBStorage, Bulk]) -> None:
    own, bulk = (content(storage) for storage in places)
    assert len(own["trials"]) == 4 and len(own["trial_params"]) == 6 and len(own["trial_values"]) == 6
    assert own == bulk


def test_trials_are_read_as_optuna_reads_them(places: tuple[RDBStorage, Bulk]) -> None:
    own, bulk = places
    expected = optuna.load_study(study_name=NAME, storage=own).trials
    for storage in places:
        with Session(storage.engine) as session:
            read = rows.read(storage.get_study_id_from_name(NAME), None, session)
        assert [(trial, list(trial.params)) for trial in read] == [(trial, list(trial.params)) for trial in expected]
    assert optuna.load_study(study_name=NAME, storage=bulk).trials == expected


def test_trials_after_one_and_of_one_study_are_read(places: tuple[RDBStorage, Bulk]) -> None:
    _, bulk = places
    other = optuna.create_study(study_name="other", storage=bulk, directions=["minimize"] * 3)
    other.add_trial(create_trial(values=[1.0, 2.0, 3.0]))
    with Session(bulk.engine) as session:
        study = bulk.get_study_id_from_name(NAME)
        assert [trial.number for trial in rows.read(study, 2, session)] == [2, 3]
        assert rows.read(study, 4, session) == []
        assert [trial.values for trial in rows.read(study + 1, None, session)] == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        ("update trial_params set distribution_json = 'x' where param_id = 1", ValueError),
        ("update trial_user_attributes set value_json = null where trial_user_attribute_id = 1", TypeError),
        ("update trial_values set objective = 7 where trial_value_id = 1", KeyError),
        ("update trials set state = 'x' where trial_id = 2", LookupError),
        ("update trials set datetime_start = 'x' where trial_id = 2", ValueError),
    ],
)
def test_a_damaged_row_is_an_error(places: tuple[RDBStorage, Bulk], damage: str, error: type[Exception]) -> None:
    _, bulk = places
    with closing(sqlite3.connect(str(bulk.engine.url.database))) as connection, connection:
        connection.execute(damage)
    with Session(bulk.engine) as session, pytest.raises(error):
        rows.read(bulk.get_study_id_from_name(NAME), None, session)
