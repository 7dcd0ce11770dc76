"""Which trial is best under a budget, and which ones cannot be told apart from it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from objectives.cost.spec import Cost
from search.evidence.options import Preference
from search.evidence.posterior import Evidence


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A trial within a budget.

    Attributes:
        number: of the trial.
        error: measured on the search split: what counts where the evidence does not know the trial.
        load: how much of the budget it uses.
    """

    number: int
    error: float
    load: float


@dataclass(frozen=True, kw_only=True)
class Pick:
    """What was picked under a budget.

    Attributes:
        number: of the trial.
        tied: numbers of the others that cannot be told apart from the one of least expected error, the cheapest first.
    """

    number: int
    tied: tuple[int, ...] = ()


def within(trials: Iterable[tuple[int, float | None, Mapping[Cost, float]]], limits: Mapping[Cost, float]) -> list[Candidate]:
    """The trials that have an error and are within limits.

    Args:
        trials: number, measured error and costs of each.
        limits: cost -> bound, in the unit of the costs; a cost that a trial does not have is above every bound.
    """
    found = []
    for number, error, costs in trials:
        load = max(costs.get(cost, math.inf) / limit for cost, limit in limits.items())
        if error is not None and math.isfinite(error) and load <= 1:
            found.append(Candidate(number=number, error=error, load=load))
    return found


def pick(candidates: Sequence[Candidate], evidence: Evidence, prefer: Preference = "accurate") -> Pick | None:
    """The best trial of some; None if there is none.

    Args:
        candidates: within the budget, with finite errors.
        evidence: of the run. Where it knows some of them, the others do not compete.
        prefer: accurate: the least expected error, and of equal ones what uses more of the budget. cheap: what uses least of
            the budget, of all that cannot be told apart from the least expected error.
    """
    known = [entry for entry in candidates if entry.number in evidence]
    if not known:
        least = min(candidates, key=lambda entry: (entry.error, -entry.load, entry.number), default=None)
        return None if least is None else Pick(number=least.number)
    best = min(known, key=lambda entry: (evidence.mean(entry.number), -entry.load, entry.number))
    tied = [entry for entry in known if not evidence.told_apart(entry.number, best.number)]
    tied.sort(key=lambda entry: (entry.load, entry.number))
    chosen = best if prefer == "accurate" else tied[0]
    return Pick(number=chosen.number, tied=tuple(entry.number for entry in tied if entry.number != chosen.number))
