"""The journal of a run: a file that one process appends finished trials to, and that outlives any end of it."""

import fcntl
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from objectives.score import Score
from search.trial import Proposal, Trial
from spaces.errors import RunError
from spaces.files import cut_torn_line

_NAME = "search"


class Journal:
    """The trials of a run, one append each; holds the run's lock until it is closed.

    Args:
        directory: the run directory; holds study.journal.
        objectives: how many values a finished trial has.

    Raises:
        RunError: another process writes this run, or the journal cannot be read.
    """

    def __init__(self, directory: Path, objectives: int) -> None:
        self._lock = lock_run(directory)
        try:
            self._study = _open(directory / "study.journal", objectives)
        except RunError:
            self.close()
            raise

    def frozen(self) -> list[FrozenTrial]:
        """All that was appended, as Optuna holds it."""
        return self._study.get_trials(deepcopy=False)

    def append(
        self,
        trial: Trial,
        values: list[float] | None,
        distributions: Mapping[str, BaseDistribution],
        system: dict[str, Any],
    ) -> None:
        """Add a finished trial.

        Args:
            trial: what to add.
            values: of the objectives; None for a trial that has not finished its fine-tune.
            distributions: of its parameters, and of others.
            system: attributes that its sampler has put there.
        """
        self._study.add_trial(_freeze(trial, values, distributions, system))

    def close(self) -> None:
        """Let another process write the run."""
        self._lock.close()


def thaw(frozen: FrozenTrial) -> Trial:
    """The trial that was appended."""
    entry = dict(frozen.user_attrs)
    score, reason = entry.pop("score"), entry.pop("reason")
    proposal = Proposal.from_dict({**entry, "parameters": frozen.params})
    return Trial(proposal=proposal, score=_score(score) if score else None, reason=reason)


def _score(entry: Mapping[str, Any]) -> Score:
    return Score(**{**entry, "rungs": {int(step): error for step, error in entry.get("rungs", {}).items()}})


def lock_run(directory: Path) -> IO[str]:
    """Keep other processes from writing a run until what is returned is closed, or this process ends.

    Raises:
        RunError: another process writes it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    handle = (directory / ".lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise RunError(f"another process is at work in {directory}: wait for it, or choose another --output") from error
    return handle


def _freeze(
    trial: Trial, values: list[float] | None, distributions: Mapping[str, BaseDistribution], system: dict[str, Any]
) -> FrozenTrial:
    entry = trial.proposal.to_dict()
    parameters, _ = entry.pop("parameters"), entry.pop("attributes")  # `system` has these, and what came later
    return create_trial(
        state=TrialState[trial.state],
        values=values,
        params=parameters,
        distributions={name: distributions[name] for name in parameters},
        user_attrs={**entry, "score": None if trial.score is None else asdict(trial.score), "reason": trial.reason},
        system_attrs=system,
    )


def _open(path: Path, objectives: int) -> optuna.Study:
    """Open or create the journal; only the holder of the run's lock may."""
    cut_torn_line(path)
    path.with_name(path.name + ".lock").unlink(missing_ok=True)  # left by a writer that was killed
    try:
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
        return optuna.create_study(study_name=_NAME, storage=storage, directions=["minimize"] * objectives, load_if_exists=True)
    except (ValueError, KeyError) as error:
        raise RunError(f"{path} cannot be read ({error}): restore it, or choose another --output") from error
