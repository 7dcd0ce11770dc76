"""How a search ends: its last tenth confirms picks, and where it has settled it ends before its number of trials."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from objectives.cost.spec import Cost
from search.budgets.parametrisation import Budgets
from search.config import SearchConfig
from search.evidence.confirm import Contender, Repeat, to_repeat
from search.evidence.pick import Candidate, within
from search.evidence.posterior import Evidence
from search.evidence.settled import known_to, settled_after
from search.samplers.screening import Candidates
from search.trial import DENSE, Proposal, Trial
from spaces.allocation import Allocation

LEAST_CONFIRMED = 10  # trials of a search that has any to spare
_PART = 10


@dataclass(frozen=True, kw_only=True)
class Ending:
    """When a search confirms its picks, and when it is over.

    Attributes:
        trials: of the search, at most.
        targets: of the search: cost -> bound.
        confirms: whether contenders for its picks are fine-tuned again with other seeds.
        until_settled: whether it is over before where a further trial is worth too little.
    """

    trials: int
    targets: Sequence[Mapping[Cost, float]]
    confirms: bool = True
    until_settled: bool = False

    @property
    def confirming(self) -> int:
        """How many trials are for confirming, where the search does not settle."""
        return -(-self.trials // _PART) if self.confirms and self.trials >= LEAST_CONFIRMED else 0

    def settled(self, proposals: Sequence[Proposal]) -> int | None:
        """How many trials there were when the search settled, if it ends for that; else None."""
        last = settled_after(proposals, len(self.targets)) if self.until_settled else None
        return None if last is None else last + 1

    def wanted(self, proposals: Sequence[Proposal]) -> int:
        """How many trials the search has when it is over, by those that are finished, running or waiting.

        What was proposed at the same time as the trial with which it settled comes on top.
        """
        settled = self.settled(proposals)
        if settled is None:
            return self.trials
        late = sum(entry.number >= settled and entry.repeats is None for entry in proposals)
        return min(self.trials, settled + late + (-(-settled // _PART) if self.confirms else 0))

    def is_confirming(self, number: int, proposals: Sequence[Proposal]) -> bool:
        """Whether the trial of this number may be a repeat."""
        if not self.confirms:
            return False
        settled = self.settled(proposals)
        return number >= self.trials - self.confirming if settled is None else number >= settled

    def repeat(self, trials: Sequence[Trial], proposals: Sequence[Proposal], evidence: Evidence) -> Repeat:
        """Which trial to fine-tune again: the targets take turns, and one with a clear pick lets the next one go first.

        Args:
            trials: that have ended.
            proposals: these, and all others.
            evidence: of the trials.
        """
        tunes = Counter(entry.allocation for entry in proposals if entry.allocation is not None and entry.recipe is None)
        turn, is_stuck = sum(entry.repeats is not None for entry in proposals), False
        for step in range(len(self.targets)):
            limits = self.targets[(turn + step) % len(self.targets)]
            contenders = _contenders(trials, limits, tunes, evidence)
            found = to_repeat(contenders, evidence) if contenders else Repeat()
            if found.number is not None:
                return found
            is_stuck |= found.stuck
        return Repeat(stuck=is_stuck)


def ending_of(config: SearchConfig, targets: Sequence[Mapping[Cost, float]]) -> Ending | None:
    """How the search of these options ends; None where a recipe alone is run, which is no search.

    Seeds matter to trials that are trained, and picks to a search that was given targets.
    """
    study = config.study
    if study.recipe is not None:
        return None
    confirms = bool(study.target) and config.finetune.steps > 0
    return Ending(trials=study.trials, targets=targets, confirms=confirms, until_settled=study.until_settled)


def with_worth(proposal: Proposal, draw: Candidates, budgets: Budgets, trials: Sequence[Trial], evidence: Evidence) -> Proposal:
    """A proposal with what is noted of the candidates that it was chosen from: what it was worth."""
    dense = next((trial.proposal.number for trial in trials if trial.proposal.label == DENSE), None)
    known = known_to(_within(trials, budgets.targets[draw.target]), evidence, budgets.lows[draw.target], dense)
    return replace(proposal, gain=draw.gain, known_to=known)


def _within(trials: Sequence[Trial], limits: Mapping[Cost, float]) -> list[Candidate]:
    scored = [(trial.proposal.number, trial.score) for trial in trials if trial.score is not None]
    return within([(number, score.error, score.costs) for number, score in scored], limits)


def _contenders(
    trials: Sequence[Trial], limits: Mapping[Cost, float], tunes: Mapping[Allocation, int], evidence: Evidence
) -> list[Contender]:
    """Of every allocation within limits that can be trained again, the fine-tune of the least expected error."""
    trained = [trial for trial in trials if trial.score is not None and trial.score.steps > 0]
    proposals = [trial.proposal for trial in trained if trial.proposal.recipe is None]
    allocations = {entry.number: entry.allocation for entry in proposals if entry.allocation is not None}
    known = [entry.number for entry in _within(trials, limits) if entry.number in evidence and entry.number in allocations]
    best: dict[Allocation, int] = {}
    for number in sorted(known, key=lambda number: (evidence.mean(number), number)):
        best.setdefault(allocations[number], number)
    moved = {trial.proposal.number for trial in trained if trial.score is not None and trial.score.kept_step != 0}
    return [Contender(number=number, tunes=tunes[allocation], trains=number in moved) for allocation, number in best.items()]
