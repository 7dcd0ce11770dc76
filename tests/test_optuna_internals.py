"""What is used of Optuna's private parts still does what it is used for: a newer Optuna fails here first."""

import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import InMemoryStorage
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import FrozenTrial, create_trial
from sqlalchemy.orm import Session

from search.optuna_internals import GuardedStorage, contains, models, note, renumber, trial_id, uncopied
from search.study.replay import OPERATIONS
from spaces.errors import RunError


def test_a_trial_in_memory_gets_another_number() -> None:
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage)
    study.add_trials([create_trial(value=0.5), create_trial(value=0.25)])
    renumber(storage, trial_id(study.get_trials(deepcopy=False)[1]), 7)
    assert [(trial.number, trial.value) for trial in study.trials] == [(0, 0.5), (7, 0.25)]


def test_a_note_stays_with_its_trial() -> None:
    study = optuna.create_study()
    for _ in range(2):
        study.ask()
    note(study, study.get_trials(deepcopy=False)[1], "key", [1.5])
    assert [trial.system_attrs for trial in study.trials] == [{}, {"key": [1.5]}]


def test_a_trial_is_added_to_memory_without_copies_of_what_it_holds() -> None:
    added, storage = create_trial(value=0.5, system_attrs={"key": [1.5]}), InMemoryStorage()
    study = optuna.create_study(storage=storage)
    storage.create_new_trial(study._study_id, uncopied(added))
    (kept,) = study.get_trials(deepcopy=False)
    assert kept.system_attrs is added.system_attrs
    assert kept is not added
    (copied,) = study.trials
    assert copied.system_attrs == added.system_attrs
    assert copied.system_attrs is not added.system_attrs, "what is asked for a copy is one"


@pytest.mark.parametrize(
    ("distribution", "inside", "outside"),
    [
        (FloatDistribution(0.5, 1.0), 0.5, 1.01),
        (IntDistribution(8, 64, step=8), 24, 25),
        (CategoricalDistribution(("a", "b")), 1, 2),
    ],
)
def test_what_a_distribution_contains(distribution: BaseDistribution, inside: float, outside: float) -> None:
    assert contains(distribution, inside)
    assert not contains(distribution, outside)


class Guarded(GuardedStorage):
    """Refuses values of 0, inserts nothing for those of 1 but gives the first trial, and lets another try to write."""

    def insert(self, study_id: int, trial: FrozenTrial, session: Session) -> models.TrialModel:
        with pytest.raises(sqlite3.OperationalError, match="locked"), closing(self.other()) as other:
            other.execute("DELETE FROM studies")
        if trial.value == 0.0:
            raise RunError("refused")
        found = session.query(models.TrialModel).first()
        return found if trial.value == 1.0 and found is not None else super().insert(study_id, trial, session)

    def other(self) -> sqlite3.Connection:
        return sqlite3.connect(str(self.engine.url.database), timeout=0)


def test_an_insertion_is_guarded_in_its_transaction(tmp_path: Path) -> None:
    """While the study is locked: in SQLite the whole file is."""
    storage = Guarded(f"sqlite:///{tmp_path}/studies.db")
    study = optuna.create_study(storage=storage)
    study.add_trial(create_trial(value=0.5))
    study.add_trial(create_trial(value=1.0))
    with pytest.raises(RunError, match="refused"):
        study.add_trial(create_trial(value=0.0))
    study.add_trial(create_trial(value=0.25))
    assert [trial.value for trial in optuna.load_study(study_name=study.study_name, storage=storage).trials] == [0.5, 0.25]
    storage.remove_session()
    storage.engine.dispose()


def test_the_operations_of_a_journal_have_the_numbers_that_are_read() -> None:
    assert OPERATIONS == (JournalOperation.CREATE_STUDY, JournalOperation.SET_STUDY_USER_ATTR, JournalOperation.CREATE_TRIAL)
