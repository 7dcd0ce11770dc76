"""The journal of a run: what one process appends finished trials to, and what outlives any end of it."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState, create_trial

from objectives.score import Score
from search.layout import JOURNAL
from search.masking import masked
from search.study.database import NUMBER, close, open_study, reason, remedy_of, trials_of
from search.study.replay import check_attributes
from search.trial import Proposal, Trial
from spaces.errors import RunError

PAUSES = (2.0, 8.0, 30.0)  # seconds before another try to append: a database restarts, or another server takes over


class Journal:
    """The trials of a run, one append each; only the holder of the run's lock may have one.

    Args:
        directory: the run directory; holds study.journal where there is no database.
        objectives: how many values a finished trial has.
        storage: URL of a database to keep the trials in.
        identity: says which search it is.

    Attributes:
        where: the file, or the study in a database, as it may be shown.
        backup: how it gets trials back that it has lost.

    Raises:
        RunError: its trials cannot be read, or they are of another search.
    """

    def __init__(self, directory: Path, objectives: int, storage: str | None = None, identity: str | None = None) -> None:
        self.where, self.backup = str(directory / JOURNAL), "restore it from a backup"
        if storage is not None:
            self.where = f"the study {directory.resolve().name!r} in {masked(storage)}"
            self.backup += ", or give the run directory the name back that it had, by which its study is called"
        self._url, self._remedy = storage, remedy_of(storage)
        self._study, self._opened = open_study(directory, objectives, storage, identity)

    def frozen(self) -> list[FrozenTrial]:
        """All that was appended, as Optuna holds it."""
        return trials_of(self._study, self._opened)

    def damaged(self, frozen: FrozenTrial, error: Exception) -> RunError:
        """What to say of a trial that cannot be continued from."""
        number = frozen.user_attrs.get(NUMBER, frozen.number)
        return RunError(f"trial {number} in {self.where} cannot be read ({error}): restore it from a backup, or {self._remedy}")

    def append(
        self,
        trial: Trial,
        values: list[float] | None,
        distributions: Mapping[str, BaseDistribution],
        system: dict[str, Any],
    ) -> None:
        """Add a finished trial; a database that fails is tried again for a while.

        Args:
            trial: what to add.
            values: of the objectives; None for a trial that has not finished its fine-tune.
            distributions: of its parameters, and of others.
            system: attributes that its sampler has put there.

        Raises:
            RunError: it could not be added, or another process has taken the study over.
        """
        frozen = _freeze(trial, values, distributions, system)
        for pause in (*PAUSES, None):
            try:
                self._study.add_trial(frozen)
                return
            except (StorageInternalError, OSError) as error:
                if pause is None or isinstance(error, OSError):  # a file on a full disk is not tried again
                    raise self._lost(trial, error) from error
                time.sleep(pause)

    def close(self) -> None:
        """Give the connections of a database back."""
        close(self._opened)

    def _lost(self, trial: Trial, error: Exception) -> RunError:
        return RunError(
            f"the result of trial {trial.proposal.number} could not be recorded in {self.where} ({reason(error, self._url)}): "
            "put that right; the same command continues the run, and repeats this trial"
        )


def thaw(frozen: FrozenTrial) -> Trial:
    """The trial that was appended.

    Raises:
        SchemaError: its attributes are not those of a trial.
    """
    check_attributes(frozen)
    entry = dict(frozen.user_attrs)
    score, reason, ended = entry.pop("score"), entry.pop("reason"), entry.pop("ended")
    proposal = Proposal.from_dict({**entry, "parameters": frozen.params})
    return Trial(proposal=proposal, score=_score(score) if score else None, reason=reason, ended=ended)


def _score(entry: Mapping[str, Any]) -> Score:
    return Score(**{**entry, "rungs": {int(step): error for step, error in entry["rungs"].items()}})


def _freeze(
    trial: Trial, values: list[float] | None, distributions: Mapping[str, BaseDistribution], system: dict[str, Any]
) -> FrozenTrial:
    entry = trial.proposal.to_dict() | {"reason": trial.reason, "ended": trial.ended}
    parameters, _ = entry.pop("parameters"), entry.pop("attributes")  # `system` has these, and what came later
    return create_trial(
        state=TrialState[trial.state],
        values=values,
        params=parameters,
        distributions={name: distributions[name] for name in parameters},
        user_attrs={**entry, "score": None if trial.score is None else asdict(trial.score)},
        system_attrs=system,
    )
