"""A trial of a run that has ended, with its figures: what tables, pages and exports read of it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from objectives.cost.spec import COSTS, Cost, known_costs
from objectives.score import Score
from search.evidence.intervals import Interval
from search.evidence.options import Preference
from search.evidence.pick import Pick, pick, within
from search.evidence.posterior import Evidence
from search.trial import Trial
from spaces.allocation import Allocation


@dataclass(frozen=True, kw_only=True)
class FinishedTrial:
    """A trial that has ended.

    Attributes:
        number: counted from 0 in the order of proposing.
        state: COMPLETE; PRUNED where it was stopped at a rung; or FAIL.
        label: name of the baseline or recipe that it is, if it is one; of a repeat, what it repeats.
        space: name of the space of its allocation.
        reason: why it failed or was stopped.
        error: top-1 error on the search split after the short fine-tune, in [0, 1]; None unless it is COMPLETE.
        error_before: top-1 error as built, before any training, on `RunSummary.split_before`.
        kl, kl_before: mean KL divergence from the dense model after and before it, in nats; on the splits of the errors.
        cross_entropy: mean cross-entropy of the labels after it, in nats, on the search split.
        costs: cost -> figure, in the cost's unit; empty for a failed trial.
        kept: cost -> share of the dense model's; likewise.
        steps: optimiser steps paid.
        kept_step: optimiser step whose weights were kept; 0 for those as built.
        seconds: wall time of building, training and evaluating.
        rung: the last one that it was measured at, in optimiser steps.
        rung_error: its error there.
        seed: of its fine-tune.
        ended: when it was recorded, as ISO 8601 in UTC.
        allocation: its sizes; empty where a recipe failed before it had made one.
        repeats: number of the first trial of its allocation, where it is another fine-tune of that.
        expected: error that the test split should show, by all that was measured of the run; None where that is not known.
    """

    number: int
    state: str
    label: str | None
    space: str
    reason: str | None
    error: float | None
    error_before: float | None
    kl: float | None
    kl_before: float | None
    cross_entropy: float | None
    costs: Mapping[Cost, float]
    kept: Mapping[Cost, float]
    steps: int | None
    kept_step: int | None
    seconds: float | None
    rung: int | None
    rung_error: float | None
    seed: int | None
    ended: str
    allocation: Allocation
    repeats: int | None = None
    expected: Interval | None = None

    @property
    def is_complete(self) -> bool:
        """Whether it has a final error."""
        return self.state == "COMPLETE"

    def figure(self, name: str) -> float:
        """Its error, or one of its costs in the cost's unit; NaN where that is not known."""
        return self.costs.get(name, math.nan) if name in COSTS else _or_nan(self.error)

    def objective(self, name: str) -> float:
        """What a front is taken of: the expected error, a cost as the share of the dense model's; NaN where not known.

        The error that was measured stands in for the expected one where that is not known.
        """
        if name in COSTS:
            return self.kept.get(name, math.nan)
        return _or_nan(self.error) if self.expected is None else self.expected.mean

    def load(self, limits: Mapping[Cost, float]) -> float:
        """How much of a budget it uses; 1 is all of it."""
        return max(self.figure(cost) / limit for cost, limit in limits.items())


def finished_trials(trials: Iterable[Trial], dense: Mapping[Cost, float]) -> tuple[FinishedTrial, ...]:
    """The trials of a study in the order of their numbers.

    Args:
        trials: in any order.
        dense: cost -> figure of the dense model; its costs are those that the search knows.
    """
    return tuple(_finished(trial, dense) for trial in sorted(trials, key=lambda trial: trial.proposal.number))


def with_evidence(trials: Iterable[FinishedTrial], evidence: Evidence) -> tuple[FinishedTrial, ...]:
    """The trials with the errors that are expected of them."""
    return tuple(
        replace(trial, expected=evidence.expected(trial.number)) if trial.number in evidence else trial for trial in trials
    )


def pick_within(
    trials: Iterable[FinishedTrial], limits: Mapping[Cost, float], evidence: Evidence, prefer: Preference = "accurate"
) -> Pick | None:
    """The best complete trial within limits, and those that cannot be told apart from it; None if there is none."""
    complete = [(trial.number, trial.error, trial.costs) for trial in trials if trial.is_complete]
    return pick(within(complete, limits), evidence, prefer)


def _finished(trial: Trial, dense: Mapping[Cost, float]) -> FinishedTrial:
    proposal, score = trial.proposal, trial.score
    rung, rung_error = max(score.rungs.items(), default=(None, None)) if score else (None, None)
    costs = {} if score is None else _costs(score, dense)
    return FinishedTrial(
        number=proposal.number,
        state=trial.state,
        label=proposal.label,
        space=proposal.space,
        reason=trial.reason,
        error=None if score is None else score.error,
        error_before=None if score is None else score.error_before,
        kl=None if score is None else score.kl,
        kl_before=None if score is None else score.kl_before,
        cross_entropy=None if score is None else score.cross_entropy,
        costs=costs,
        kept={cost: value / dense[cost] for cost, value in costs.items()},
        steps=None if score is None else score.steps,
        kept_step=None if score is None else score.kept_step,
        seconds=None if score is None else score.seconds,
        rung=rung,
        rung_error=rung_error,
        seed=proposal.seed,
        ended=trial.ended,
        allocation=proposal.allocation or Allocation({}),
        repeats=proposal.repeats,
    )


def _costs(score: Score, dense: Mapping[Cost, float]) -> dict[Cost, float]:
    known = [spec for spec in known_costs(dense) if spec.name in score.costs]
    return {spec.name: int(score.costs[spec.name]) if spec.is_whole else score.costs[spec.name] for spec in known}


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
