"""The trials of one search: asked, told, kept in a journal file, and taken up again after any end.

The journal is the only truth. Sampling happens in an in-memory study, and every finished trial is mirrored into the
journal by a single append, so that a kill at any moment loses running trials only. One process writes a run.
"""

import fcntl
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from objectives.cost import Cost
from objectives.objective import Score
from objectives.recipes import recipe_of
from search.parametrisation import Parametrisation
from search.samplers import create_sampler
from spaces.allocation import Allocation
from spaces.errors import RunError
from spaces.files import write_json

_NAME = "search"
_ATTEMPTS = 50


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A trial to be run.

    Attributes:
        number: of the trial, counted from 0 in the order of proposing.
        allocation: what to build; None while a recipe has not made it.
        space: name of the space of the allocation.
        seed: for its fine-tune.
        label: name of the baseline that it is, if it is one.
        parameters: what the sampler sees; empty for an allocation outside of the sampled band.
        recipe: name of the recipe that makes the model, in place of an allocation.
        limits: the recipe's budget: cost -> bound, in MACs or parameters.
    """

    number: int
    allocation: Allocation | None
    space: str
    seed: int
    label: str | None = None
    parameters: Mapping[str, float] = field(default_factory=dict)
    recipe: str | None = None
    limits: Mapping[Cost, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A finished trial: what was proposed, and its score or the reason why it failed."""

    proposal: Proposal
    score: Score | None
    reason: str | None

    @property
    def state(self) -> str:
        return "COMPLETE" if self.score is not None else "FAIL"


class Study:
    """Ask, tell and resume.

    Proposals depend on the seed, the trial's number and the finished trials alone, so a resumed study proposes what an
    uninterrupted one would have (with tpe and random; nsga2 goes on from the same population, but mutates it otherwise).

    Args:
        directory: the run directory; holds study.journal and trials/.
        parametrisation: from what the sampler sees to allocations.
        objectives: fields of `Score` to be minimised, "error" first.
        sampler: name of the sampler.
        seed: of the sampler and of every fine-tune.

    Raises:
        RunError: another process writes this run, or the journal cannot be read.
    """

    def __init__(
        self, directory: Path, parametrisation: Parametrisation, objectives: tuple[str, ...], sampler: str, seed: int
    ) -> None:
        self.directory = directory
        self.parametrisation = parametrisation
        self.objectives = objectives
        self.sampler = sampler
        self.seed = seed
        self._lock = _lock(directory / ".lock")
        try:
            self._journal = _open_journal(directory / "study.journal", objectives)
        except RunError:
            self._lock.close()
            raise
        self._memory = optuna.create_study(directions=["minimize"] * len(objectives), sampler=create_sampler(sampler, seed))
        self.trials: list[Trial] = []
        for frozen in self._journal.get_trials(deepcopy=False):
            self.trials.append(_thaw(frozen))
            if frozen.params:
                self._memory.add_trial(frozen)
        self._running: dict[int, tuple[Proposal, optuna.Trial | None]] = {}
        self._queue = self._interrupted()

    def enqueue(self, label: str, allocation: Allocation, parameters: Mapping[str, float] | None = None) -> None:
        """Propose this baseline next, unless its allocation was already tried or is waiting.

        Args:
            label: its name.
            allocation: what to build.
            parameters: what the sampler is told that it was; without, the sampler does not see the trial.
        """
        waiting = {proposal.allocation for proposal in self._queue}
        if allocation not in waiting | self._known():
            self._queue.append(self._propose(allocation, label, parameters or {}))

    def enqueue_recipe(self, name: str, limits: Mapping[Cost, float]) -> None:
        """Propose this recipe next, unless it was already tried on this budget or is waiting."""
        running = [proposal for proposal, _ in self._running.values()]
        known = [trial.proposal for trial in self.trials] + running + self._queue
        if not any(proposal.recipe == name and dict(proposal.limits) == dict(limits) for proposal in known):
            proposal = self._propose(None, name, {})
            self._queue.append(replace(proposal, space=recipe_of(name).space, recipe=name, limits=dict(limits)))

    def ask(self) -> Proposal | None:
        """The next trial: what was interrupted or enqueued first, then the sampler's. None if it finds nothing new."""
        if self._queue:
            proposal = self._queue.pop(0)
            if proposal.parameters:
                self._memory.enqueue_trial(dict(proposal.parameters))
            return self._start(proposal, self._sample(proposal.number) if proposal.parameters else None)
        known = self._known()
        for attempt in range(_ATTEMPTS):
            sampled = self._sample(self._next_number(), attempt)
            allocation = self.parametrisation.decode(sampled.params)
            if allocation not in known:
                return self._start(self._propose(allocation, None, sampled.params), sampled)
            self._memory.tell(sampled, state=TrialState.FAIL)  # a repetition is not paid for, and must not count
        return None

    def tell(self, number: int, score: Score | None, reason: str | None = None, allocation: Allocation | None = None) -> Trial:
        """Record the score of a running trial, or why it has none, and the allocation that a recipe made."""
        proposal, sampled = self._running.pop(number)
        if allocation is not None:
            proposal = replace(proposal, allocation=allocation)
        if score is not None and not self._finite(score):
            reason = f"the score is not finite: {asdict(score)}"
            score = None
        trial = Trial(proposal=proposal, score=score, reason=None if score is not None else reason or "no reason was given")
        values = None if score is None else self._values(score)
        attributes: dict[str, Any] = {}
        if sampled is not None:
            state = TrialState.COMPLETE if values is not None else TrialState.FAIL
            attributes = self._memory.tell(sampled, values, state=state).system_attrs
        self._journal.add_trial(_freeze(trial, values, self.parametrisation, attributes))
        self.trials.append(trial)
        return trial

    @property
    def spaces(self) -> list[str]:
        """Names of the spaces of all trials, finished, running or waiting."""
        proposals = [trial.proposal for trial in self.trials] + [entry for entry, _ in self._running.values()] + self._queue
        return [proposal.space for proposal in proposals]

    @property
    def planned(self) -> int:
        """Trials that are finished, running or waiting."""
        return len(self.spaces)

    def close(self) -> None:
        """Let another process write the run."""
        self._lock.close()

    def folder(self, number: int) -> Path:
        """Where one trial keeps its files."""
        return self.directory / "trials" / f"{number:04d}"

    def _sample(self, number: int, attempt: int = 0) -> optuna.Trial:
        self._memory.sampler = create_sampler(self.sampler, (self.seed * 1_000_003 + number * _ATTEMPTS + attempt) % 2**31)
        return self._memory.ask(self.parametrisation.distributions)

    def _propose(self, allocation: Allocation | None, label: str | None, parameters: Mapping[str, float]) -> Proposal:
        return Proposal(
            number=self._next_number(),
            allocation=allocation,
            space=self.parametrisation.space.name,
            seed=self.seed,
            label=label,
            parameters=dict(parameters),
        )

    def _start(self, proposal: Proposal, sampled: optuna.Trial | None) -> Proposal:
        sizes = None if proposal.allocation is None else dict(proposal.allocation)
        write_json(self.folder(proposal.number) / "allocation.json", {**asdict(proposal), "allocation": sizes})
        self._running[proposal.number] = proposal, sampled
        return proposal

    def _known(self) -> set[Allocation]:
        """Allocations that were tried or are running; what a recipe made has other weights, and does not count."""
        proposals = [*(proposal for proposal, _ in self._running.values()), *(trial.proposal for trial in self.trials)]
        return {entry.allocation for entry in proposals if entry.allocation is not None and entry.recipe is None}

    def _next_number(self) -> int:
        numbers = [trial.proposal.number for trial in self.trials] + [proposal.number for proposal in self._queue]
        return max([*numbers, *self._running], default=-1) + 1

    def _interrupted(self) -> list[Proposal]:
        """Trials that were started and never told, oldest first."""
        told = {trial.proposal.number for trial in self.trials}
        found = []
        for path in sorted((self.directory / "trials").glob("*/allocation.json")):
            try:
                entry = json.loads(path.read_text(encoding="utf-8"))
                proposal = Proposal(**{**entry, "allocation": _allocation(entry["allocation"])})
            except (OSError, ValueError, TypeError, KeyError):
                continue  # a file that was never finished belongs to a trial that never began
            if proposal.number not in told:
                found.append(proposal)
        return found

    def _values(self, score: Score) -> list[float]:
        return [float(getattr(score, name)) for name in self.objectives]

    def _finite(self, score: Score) -> bool:
        return all(abs(value) < float("inf") for value in self._values(score))


def _freeze(trial: Trial, values: list[float] | None, parametrisation: Parametrisation, system: dict[str, Any]) -> FrozenTrial:
    proposal = trial.proposal
    known = parametrisation.distributions
    return create_trial(
        state=TrialState.COMPLETE if values is not None else TrialState.FAIL,
        values=values,
        params=dict(proposal.parameters),
        distributions={name: known[name] for name in proposal.parameters},
        user_attrs={
            "number": proposal.number,
            "allocation": None if proposal.allocation is None else dict(proposal.allocation),
            "space": proposal.space,
            "seed": proposal.seed,
            "label": proposal.label,
            "recipe": proposal.recipe,
            "limits": dict(proposal.limits),
            "score": None if trial.score is None else asdict(trial.score),
            "reason": trial.reason,
        },
        system_attrs=system,
    )


def _thaw(frozen: FrozenTrial) -> Trial:
    attributes = frozen.user_attrs
    proposal = Proposal(
        number=attributes["number"],
        allocation=_allocation(attributes["allocation"]),
        space=attributes["space"],
        seed=attributes["seed"],
        label=attributes["label"],
        parameters=frozen.params,
        recipe=attributes["recipe"],
        limits=attributes["limits"],
    )
    score = Score(**attributes["score"]) if attributes["score"] else None
    return Trial(proposal=proposal, score=score, reason=attributes["reason"])


def _allocation(sizes: Mapping[str, int] | None) -> Allocation | None:
    return None if sizes is None else Allocation(sizes)


def _lock(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = path.open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise RunError(f"another process is searching in {path.parent}: wait for it, or choose another --output") from error
    return handle


def _open_journal(path: Path, objectives: tuple[str, ...]) -> optuna.Study:
    """Open or create the journal; only the holder of the run's lock may."""
    if path.exists():
        _cut_torn_line(path)
    path.with_name(path.name + ".lock").unlink(missing_ok=True)  # left by a writer that was killed
    try:
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
        return optuna.create_study(
            study_name=_NAME, storage=storage, directions=["minimize"] * len(objectives), load_if_exists=True
        )
    except (ValueError, KeyError) as error:
        raise RunError(f"{path} cannot be read ({error}): restore it, or choose another --output") from error


def _cut_torn_line(path: Path) -> None:
    """Drop a last line that a kill or a full disk left unfinished; the next append would glue to it."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        with path.open("r+b") as file:
            file.truncate(end)
