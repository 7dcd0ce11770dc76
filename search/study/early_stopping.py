"""Rungs: a candidate is stopped in its fine-tune where a cheaper one was clearly better after as many steps.

Optuna prunes with one objective only. Here a candidate is stopped when a finished trial that costs no more in any objective had
a smaller error at the same rung, by a margin learnt from how errors moved between that rung and the end so far. It
depends on the finished trials alone, not on their order, so that a resumed search decides as an uninterrupted one.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping

from objectives.cost.spec import Cost
from objectives.score import Score
from search.trial import Proposal, Trial

# Standard deviations by which a candidate must be behind: one in forty such leads is turned round by the end, if normal.
_WIDTH = 2.0
# Finished trials from which on their spread is taken for known.
_LEAST = 5


def reason_to_stop(
    proposal: Proposal, trials: Iterable[Trial], costs: Mapping[Cost, float], step: int, steps: int, error: float
) -> str | None:
    """Why a candidate should be stopped at a rung; None to go on. Baselines are never stopped.

    Args:
        proposal: the candidate.
        trials: of the search.
        costs: of the candidate; those that are objectives.
        step: the rung.
        steps: of the whole fine-tune.
        error: of the candidate at the rung.
    """
    if proposal.label is not None:
        return None
    better = dominating(trials, costs, step, error)
    if better is None:
        return None
    number, score = better
    return f"stopped at step {step} of {steps}: error {error:.2%}, dominated by trial {number} ({score.rungs[step]:.2%} there)"


def dominating(trials: Iterable[Trial], costs: Mapping[Cost, float], step: int, error: float) -> tuple[int, Score] | None:
    """Number and score of the finished trial that dominates a candidate at a rung: of several the one of least error there.

    Args:
        trials: of the search.
        costs: of the candidate; those that are objectives.
        step: the rung.
        error: of the candidate at the rung.
    """
    measured = list(_measured(trials, step))
    lead = margin((score for _, score in measured), step)
    if lead is None:
        return None
    better = [
        (number, score)
        for number, score in measured
        if score.rungs[step] < error - lead and all(score.costs[name] <= cost for name, cost in costs.items())
    ]
    return min(better, key=lambda entry: (entry[1].rungs[step], entry[0]), default=None)


def margin(scores: Iterable[Score], step: int) -> float | None:
    """Lead at a rung that two candidates' later progress seldom turns round; None while too few trials tell.

    Two standard deviations of the difference between the progress of two independent trials from the rung to the end:
    2 sqrt(2) times the standard deviation of (final error - error at the rung).

    Args:
        scores: of finished trials that were measured at this rung.
        step: the rung.
    """
    progress = [score.error - score.rungs[step] for score in scores if score.error is not None]
    return _WIDTH * math.sqrt(2) * statistics.stdev(progress) if len(progress) >= _LEAST else None


def _measured(trials: Iterable[Trial], step: int) -> Iterator[tuple[int, Score]]:
    """Number and score of the finished trials that were measured at this rung."""
    for trial in trials:
        if trial.state == "COMPLETE" and trial.score is not None and step in trial.score.rungs:
            yield trial.proposal.number, trial.score
