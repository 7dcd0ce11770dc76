"""The trials of one search: asked, told, kept in a journal, and taken up again after any end.

The journal, a file or a database, is the only truth. Sampling happens in an in-memory study, and every finished trial is
mirrored into the journal by a single append, so that a kill at any moment loses running trials only. One process writes a
run: it holds `search.run.directory.lock_run`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from objectives.cost.spec import Cost
from objectives.recipes.registry import recipe_of
from objectives.score import Score
from search.budgets.parametrisation import Parametrisation
from search.evidence.gathered import Gathered
from search.evidence.posterior import Evidence
from search.evidence.settled import Worth, worth_of
from search.run.losses import check_nothing_lost
from search.samplers.registry import create_sampler
from search.samplers.screening import SCORE, Candidates, ScreeningSampler
from search.study.ending import Ending, with_worth
from search.study.journal import Journal, thaw
from search.study.ordered_storage import OrderedStorage
from search.study.replay import check_allocation, check_parameters, check_repeat, check_result, read_begun
from search.trial import SCREENED, Outcome, Proposal, Screening, Trial
from spaces.allocation import Allocation
from spaces.files import write_json

_ATTEMPTS = 50
_INSISTED = 5  # after so many repetitions in a row a sampler has nothing new to say, but the space may have


class Study:
    """Ask, tell and resume.

    Proposals depend on the seed, the trial's number, and the finished and running trials alone, so a resumed study proposes
    what an uninterrupted one would have, also where several trials run at once.

    Args:
        directory: the run directory; holds trials/, and study.journal where there is no database.
        parametrisation: from what the sampler sees to allocations.
        objectives: figures of `Score` to be minimised, "error" first.
        sampler: name of the sampler.
        seed: of the sampler and of every fine-tune.
        screening: whether a sampler that can have candidates screened before it proposes one does so.
        storage: URL of a database that keeps the finished trials, in a study of the directory's name.
        identity: says which search it is, so that a study of another one is not continued.
        gathered: reads what trials made of single images; by default nothing is known of the dense model.
        ending: when picks are confirmed, and when the search is over; by default neither.

    Attributes:
        journal: what outlives the process.
        memory: what samplers see.
        stuck: whether contenders for a pick could not be told apart by more seeds, when one was last looked for.

    Raises:
        RunError: the journal cannot be read, or it is of another search.
    """

    def __init__(
        self,
        directory: Path,
        parametrisation: Parametrisation,
        objectives: tuple[str, ...],
        sampler: str,
        seed: int,
        screening: bool = False,
        storage: str | None = None,
        identity: str | None = None,
        gathered: Gathered | None = None,
        ending: Ending | None = None,
    ) -> None:
        self._gathered = gathered or Gathered(directory, None, 0)
        self._ending, self.stuck = ending, False
        self.directory = directory
        self.parametrisation = parametrisation
        self.objectives = objectives
        self.sampler = sampler
        self.seed = seed
        self.screening = screening
        self.journal = Journal(directory, len(objectives), storage, identity)
        self._seen = OrderedStorage()
        self.memory = optuna.create_study(storage=self._seen, directions=["minimize"] * len(objectives))
        self.trials: list[Trial] = []
        self._taken: set[int] = set()  # numbers of trials and of what is proposed or sought
        for frozen in self.journal.frozen():
            self._take_up(frozen)
        self._running: dict[int, Proposal] = {}
        self._queue = self._interrupted()
        self._screenings: dict[int, tuple[int, Candidates]] = {}  # number -> attempt, and what was drawn in it
        # Allocations that need no further trial; what a recipe made has other weights, and does not count.
        self._known = {entry.allocation for entry in self.proposals if entry.allocation is not None and entry.recipe is None}
        self._taken |= {proposal.number for proposal in self._queue}
        self._least = 0  # all numbers below are taken

    def _take_up(self, frozen: FrozenTrial) -> None:
        """Take a trial from the journal."""
        try:
            trial = thaw(frozen)
            self._check(trial, frozen)
            if frozen.params:
                self._show(trial.proposal.number, frozen)
        except (ValueError, TypeError, KeyError, ArithmeticError) as error:
            self.close()
            raise self.journal.damaged(frozen, error) from error
        self.trials.append(trial)
        self._taken.add(trial.proposal.number)

    def _check(self, trial: Trial, frozen: FrozenTrial) -> None:
        """Raise where a trial of the journal cannot be one of this search."""
        check_result(frozen, frozen.user_attrs, self.objectives)
        check_parameters(frozen.params, frozen.system_attrs, self.parametrisation.distributions)
        if trial.proposal.number in self._taken:
            raise ValueError("it is there twice")
        check_allocation(trial.proposal, self.parametrisation.budgets.space)
        check_repeat(trial.proposal, self.trials)

    def check_nothing_lost(self) -> None:
        """Raise where the tables in the run directory have trials that this study lacks.

        Raises:
            RunError: they have.
        """
        numbers = [trial.proposal.number for trial in self.trials]
        check_nothing_lost(self.directory, numbers, self.journal.where, self.journal.backup)

    def enqueue(self, label: str, allocation: Allocation, parameters: Mapping[str, float] | None = None) -> None:
        """Propose this baseline next, unless its allocation was already tried or is waiting.

        Args:
            label: its name.
            allocation: what to build.
            parameters: what the sampler is told that it was; without, the sampler does not see the trial.
        """
        if allocation not in self._known:
            self._queue.append(self._propose(self._next_number(), allocation, label, parameters or {}))

    def enqueue_recipe(self, name: str, limits: Mapping[Cost, float]) -> None:
        """Propose this recipe next, unless it was already tried on this budget or is waiting."""
        if not any(entry.recipe == name and dict(entry.limits) == dict(limits) for entry in self.proposals):
            proposal = self._propose(self._next_number(), None, name, {})
            self._queue.append(replace(proposal, space=recipe_of(name).space, recipe=name, limits=dict(limits)))

    def ask(self) -> Proposal | Screening | None:
        """The next trial: what was interrupted or enqueued first, then the sampler's, in the end repeats. None if it finds
        nothing new, or the search is over.

        Or candidates of it, whose divergences `choose` is to be told before or after other trials are asked for and told. They
        have the trial's number; where the process ends before that, the number is asked for again, with the same seed.
        """
        if self._queue:
            proposal = self._queue.pop(0)
            if proposal.parameters:
                self._show(proposal.number, self._running_trial(proposal))
            return self._start(proposal)
        number = self._next_number()
        if (repeat := self._repeat(number)) is not None:
            return self._start(repeat)
        return None if self.is_settled else self._sought(number)

    def choose(self, number: int, divergences: Sequence[float]) -> Proposal | Screening | None:
        """The trial that was screened for, or other candidates where the best is known by now. None if there is nothing new.

        Args:
            number: of the screening.
            divergences: of its candidates as built, in nats; one that is not finite was not measured.

        Raises:
            KeyError: no screening of this number waits.
            ValueError: not one divergence for every candidate.
        """
        _, draw = self._screenings[number]
        screened = draw.measured(divergences)
        attempt, _ = self._screenings.pop(number)
        parameters = draw.choose(divergences)
        allocation = self.parametrisation.decode(parameters)
        if allocation in self._known:
            return self._sought(number, attempt + 1)
        proposal = replace(self._propose(number, allocation, None, parameters, draw), attributes={SCREENED: screened})
        self._show(number, self._running_trial(proposal))
        return self._start(proposal)

    def tell(self, outcome: Outcome) -> Trial:
        """Record how the job of a running trial ended.

        Returns:
            What is recorded: a trial whose objectives are not finite has failed.

        Raises:
            KeyError: no trial of this number runs.
            RunError: it could not be recorded.
        """
        trial = self._trial_of(self._running.pop(outcome.number), outcome)
        values = self._values(trial.score)
        self.journal.append(trial, values, self.parametrisation.distributions, self._tell_sampler(trial, values))
        self.trials.append(trial)
        return trial

    @property
    def evidence(self) -> Evidence:
        """What the search split tells of the finished trials' errors."""
        return self._gathered.of(self.trials)

    @property
    def is_settled(self) -> bool:
        """Whether the search is over, but for confirming, since a further trial is worth too little."""
        return self._ending is not None and self._ending.settled(self.proposals) is not None

    @property
    def worth(self) -> Worth | None:
        """What a further trial is worth, by the last proposals of the sampler; None where that is not known."""
        return worth_of(self.proposals, len(self.parametrisation.budgets.targets))

    def end(self, ending: Ending | None) -> None:
        """Say how the search ends, where that was not known when the study was opened."""
        self._ending = ending

    @property
    def confirming(self) -> int:
        """How many of the trials are for confirming picks, where the search does not settle before."""
        return 0 if self._ending is None else self._ending.confirming

    def wanted(self, trials: int) -> int:
        """How many trials the search has when it is over: these, or fewer where it has settled."""
        return trials if self._ending is None else min(trials, self._ending.wanted(self.proposals))

    @property
    def proposals(self) -> list[Proposal]:
        """All trials that are finished, running or waiting."""
        return [*(trial.proposal for trial in self.trials), *self._running.values(), *self._queue]

    def close(self) -> None:
        """Give the connections of a database back."""
        self.journal.close()

    def folder(self, number: int) -> Path:
        """Where one trial keeps its files."""
        return self.directory / "trials" / f"{number:04d}"

    def _trial_of(self, proposal: Proposal, outcome: Outcome) -> Trial:
        score, reason, values = outcome.score, outcome.reason, self._values(outcome.score)
        if values is not None and not all(map(math.isfinite, values)):
            score, reason, values = None, f"the score is not finite: {values}", None
        if outcome.allocation is not None:  # made by a recipe
            proposal = replace(proposal, allocation=outcome.allocation)
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        return Trial(proposal=proposal, score=score, reason=None if values else reason or "no reason was given", ended=ended)

    def _tell_sampler(self, trial: Trial, values: list[float] | None) -> dict[str, Any]:
        """Let the sampler see how a trial that it knows ended; returns what samplers have noted with it."""
        number, score = trial.proposal.number, trial.score
        if not trial.proposal.parameters:
            return {}
        self._seen.set_trial_user_attr(self._seen.latest(number), SCORE, None if score is None else asdict(score))
        return self.memory.tell(number, values, state=TrialState[trial.state]).system_attrs

    def _sought(self, number: int, first: int = 0) -> Proposal | Screening | None:
        """What the sampler has for a number, from this attempt on: a trial of a new allocation, or candidates of it."""
        repetitions: list[int] = []
        self._taken.add(number)
        try:
            for attempt in range(first, _ATTEMPTS):
                sampler = self._sampler(number, attempt)
                if (draw := self._draw(sampler, attempt)) is not None:
                    if self._known.issuperset(draw.candidates):
                        continue
                    self._screenings[number] = attempt, draw
                    return Screening(number=number, candidates=draw.candidates)
                sampled = self._sample(number, sampler)
                allocation = self.parametrisation.decode(sampled.params)
                if allocation not in self._known:
                    drawn = sampler.drawn if isinstance(sampler, ScreeningSampler) else None
                    proposal = self._propose(number, allocation, None, sampled.params, drawn)
                    return self._start(replace(proposal, attributes=self._attributes(number)))
                self.memory.tell(sampled, state=TrialState.FAIL)  # a repetition is not paid for, and must not count
                repetitions.append(self._seen.latest(number))
        finally:
            for repetition in repetitions:
                self._seen.forget(repetition)
        self._release(number)
        return None

    def _release(self, number: int) -> None:
        """Nothing was found for this number: it is the next one's again."""
        self._taken.discard(number)
        self._least = min(self._least, number)

    def _draw(self, sampler: BaseSampler, attempt: int) -> Candidates | None:
        """Candidates to be screened; what others are being screened for is taken to become what is expected now."""
        if not self.screening or not isinstance(sampler, ScreeningSampler):
            return None
        pending = [draw.best() for _, draw in self._screenings.values()]
        evidence = self.evidence
        errors = {number: evidence.mean(number) for number in evidence.numbers}
        return sampler.draw(self.memory, pending, attempt, errors)

    def _sampler(self, number: int, attempt: int) -> BaseSampler:
        seed = (self.seed * 1_000_003 + number * _ATTEMPTS + attempt) % 2**31
        name = self.sampler if attempt < _INSISTED else "random"
        return create_sampler(name, seed, self.parametrisation)

    def _sample(self, number: int, sampler: BaseSampler) -> optuna.Trial:
        self.memory.sampler, self._seen.next_number = sampler, number
        return self.memory.ask(self.parametrisation.distributions)

    def _show(self, number: int, trial: FrozenTrial) -> None:
        """Let the sampler see a trial that it did not propose, or not in this process."""
        self._seen.next_number = number
        self.memory.add_trial(trial)

    def _running_trial(self, proposal: Proposal) -> FrozenTrial:
        """A trial of the parameters of a proposal, with what its sampler noted."""
        return create_trial(
            state=TrialState.RUNNING,
            params=dict(proposal.parameters),
            distributions={name: self.parametrisation.distributions[name] for name in proposal.parameters},
            system_attrs=dict(proposal.attributes),
        )

    def _attributes(self, number: int) -> dict[str, Any]:
        return dict(self._seen.get_trial_system_attrs(self._seen.latest(number)))

    def _repeat(self, number: int) -> Proposal | None:
        """Another fine-tune of a contender for a pick, where the search is about to end and one is worth it."""
        proposals = self.proposals
        if self._ending is None or not self._ending.is_confirming(number, proposals):
            return None
        found = self._ending.repeat(self.trials, proposals, self.evidence)
        self.stuck = found.stuck
        if found.number is None:
            return None
        allocation = next(entry.allocation for entry in proposals if entry.number == found.number)
        same = [entry.number for entry in proposals if entry.allocation == allocation and entry.recipe is None]
        proposal = self._propose(number, allocation, f"again {min(same)}", {})
        return replace(proposal, seed=self.seed + len(same), repeats=min(same))

    def _propose(
        self,
        number: int,
        allocation: Allocation | None,
        label: str | None,
        parameters: Mapping[str, float],
        draw: Candidates | None = None,
    ) -> Proposal:
        self._taken.add(number)
        if allocation is not None:
            self._known.add(allocation)
        proposal = Proposal(
            number=number,
            allocation=allocation,
            space=self.parametrisation.budgets.space.name,
            seed=self.seed,
            label=label,
            parameters=dict(parameters),
        )
        budgets = self.parametrisation.budgets
        return proposal if draw is None else with_worth(proposal, draw, budgets, self.trials, self.evidence)

    def _start(self, proposal: Proposal) -> Proposal:
        write_json(self.folder(proposal.number) / "allocation.json", proposal.to_dict())
        self._running[proposal.number] = proposal
        return proposal

    def _next_number(self) -> int:
        """The smallest that no trial has: one whose proposing was interrupted is given again, with the same seed."""
        while self._least in self._taken:
            self._least += 1
        return self._least

    def _interrupted(self) -> list[Proposal]:
        """Trials that were started and never told, in the order of their numbers."""
        told = {trial.proposal.number for trial in self.trials}
        distributions, space = self.parametrisation.distributions, self.parametrisation.budgets.space
        found = [
            read_begun(path, distributions, space, self.trials)
            for path in (self.directory / "trials").glob("*/allocation.json")
        ]
        waiting = [proposal for proposal in found if proposal is not None and proposal.number not in told]
        return sorted(waiting, key=lambda proposal: proposal.number)

    def _values(self, score: Score | None) -> list[float] | None:
        """Of the objectives; None where there is no final error."""
        if score is None or score.error is None:
            return None
        figures = (score.figure(name) for name in self.objectives)
        return [math.nan if figure is None else float(figure) for figure in figures]
