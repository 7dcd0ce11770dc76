"""Whether the best trial under a target is among the smallest that the search proposes: then smaller models may do as well."""

from collections.abc import Iterator, Mapping, Sequence

from objectives.cost.spec import COSTS, Cost
from search.budgets.targets import Budget
from search.run.summary import RunSummary

_NEAR = 0.05  # share of the band, from its lower end on


def lower_edges(summary: RunSummary, band: float) -> Iterator[tuple[int, str]]:
    """The best trials that lie there, and of each a sentence that says so and which target to try next.

    Of a target whose band ends where the space does, or below which another target is searched, nothing is to be tried.

    Args:
        summary: of the run.
        band: share of every target that proposals use at least.
    """
    points = {point.number: point for point in summary.front}
    for budget, number in zip(summary.targets, summary.best, strict=True):
        if number is None or number not in points or _searched_below(budget, summary.targets):
            continue
        load = max(points[number].costs[cost] / limit for cost, limit in budget.limits.items())
        lower = {cost: band * limit for cost, limit in budget.limits.items()}
        if load <= band + _NEAR * (1 - band) and all(limit > summary.reach[cost][0] for cost, limit in lower.items()):
            yield number, _sentence(budget, number, load, band, _target(lower, summary.dense.costs))


def _sentence(budget: Budget, number: int, load: float, band: float, target: str) -> str:
    best = f"trial {number}, the best under {budget.text}"
    used = f"{best}, uses {load:.1%} of it, and this search proposes nothing below {band:.0%}"
    return f"{used}: smaller models may do as well: try --target {target} with another --output"


def _target(lower: Mapping[Cost, float], dense: Mapping[Cost, float]) -> str:
    """The lower end of the band as a target: shares of the dense model."""
    return ",".join(f"{COSTS[cost].flag}={100 * limit / dense[cost]:.3g}%" for cost, limit in lower.items())


def _searched_below(budget: Budget, budgets: Sequence[Budget]) -> bool:
    """Whether another target bounds the same costs lower."""
    limits = budget.limits
    others = (other.limits for other in budgets if other is not budget)
    return any(other.keys() == limits.keys() and all(other[cost] < limits[cost] for cost in limits) for other in others)
