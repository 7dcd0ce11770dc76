"""Everything of Optuna that is used and is not public, with the reason. Try a newer Optuna against this file."""

from copy import copy
from typing import Any

import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models  # its tables, as whose rows trials are written and read
from optuna.study import Study
from optuna.trial import FrozenTrial
from sqlalchemy.orm import Session

__all__ = ["GuardedStorage", "contains", "models", "note", "renumber", "trial_id", "uncopied"]


def trial_id(trial: FrozenTrial) -> int:
    """The id by which a storage knows a trial. Public are numbers alone, which several trials here share."""
    return trial._trial_id


def note(study: Study, trial: FrozenTrial, key: str, value: Any) -> None:
    """Keep a sampler's note with a trial that it proposes for. What samplers are given has no public method for that."""
    study._storage.set_trial_system_attr(trial._trial_id, key, value)


def contains(distribution: BaseDistribution, internal: float) -> bool:
    """Whether a value, as `to_internal_repr` gives it, is in a distribution. The public check comes with a whole trial."""
    return distribution._contains(internal)


def renumber(storage: BaseStorage, identity: int, number: int) -> None:
    """Give a trial in memory another number. Optuna counts in the order of insertions, and lets nobody choose."""
    storage.get_trial(identity).number = number  # an in-memory storage gives the trial itself, not a copy


def uncopied(trial: FrozenTrial) -> FrozenTrial:
    """The trial, so that a storage in memory shares its parameters and attributes in place of copying each of them.

    Storages in memory copy a trial with all in it when it is added, and change no dict of it later. With the candidates that
    were screened for it, that is a thousand values a trial.
    """
    shared, kept = copy(trial), copy(trial)
    vars(kept)["__deepcopy__"] = lambda memo: shared
    return kept


class GuardedStorage(RDBStorage):
    """A database whose subclass says how a finished trial is inserted, in the transaction that has locked its study.

    Optuna calls no public method within it, and a check before it would come too early.
    """

    def insert(self, study_id: int, trial: FrozenTrial, session: Session) -> models.TrialModel:
        """Insert a trial, or raise; returns its row, or that of the same trial where it is there already."""
        return super()._get_prepared_new_trial(study_id, trial, session)

    def _get_prepared_new_trial(self, study_id: int, template_trial: FrozenTrial | None, session: Session) -> models.TrialModel:
        assert template_trial is not None, "trials are added when they have finished"
        if self.engine.dialect.name == "sqlite":  # cannot lock a row for reading: Optuna has locked nothing
            study = models.StudyModel
            session.execute(sqlalchemy.update(study).where(study.study_id == study_id).values(study_name=study.study_name))
        return self.insert(study_id, template_trial, session)
