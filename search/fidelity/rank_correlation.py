"""Which trials an audit of the short fine-tune measures, and how well two fine-tunes agree on their order."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from scipy.stats import kendalltau

from objectives.cost.spec import Cost
from objectives.recipes.registry import RECIPES
from search.config import LEAST_AUDITED
from search.report.audit_tables import BAND
from search.run.audit_file import Agreement
from search.run.finished_trial import FinishedTrial
from search.trial import DENSE


def candidates(trials: Iterable[FinishedTrial]) -> list[FinishedTrial]:
    """Complete trials that are built from the factors, one of each allocation: neither the dense model nor made by a recipe."""
    first = [trial for trial in trials if trial.is_complete and trial.repeats is None]
    return [trial for trial in first if trial.label not in (DENSE, *RECIPES)]


def spread_over(trials: Sequence[FinishedTrial], figure: str, count: int) -> list[FinishedTrial]:
    """At most so many, from the least of a figure to the greatest at even steps of rank."""
    ordered = sorted(trials, key=lambda trial: (trial.figure(figure), trial.number))
    if len(ordered) <= count:
        return ordered
    return [ordered[round(index * (len(ordered) - 1) / (count - 1))] for index in range(count)]


def similar(trials: Sequence[FinishedTrial], cost: Cost) -> list[FinishedTrial]:
    """The most trials whose costs are all within `BAND` of each other; of several such bands the cheapest."""
    ordered = sorted(trials, key=lambda trial: trial.costs[cost])
    least = (trial.costs[cost] for trial in ordered)
    bands = ([trial for trial in ordered if low <= trial.costs[cost] <= BAND * low] for low in least)
    return max(bands, key=len, default=[])


def agreement(short: Sequence[float], long: Sequence[Sequence[float]], test: Sequence[float]) -> Agreement:
    """Kendall's tau between the order of trials by a short fine-tune and by a long one.

    Args:
        short: error of every trial.
        long: for each seed, the error of every trial.
        test: error of every trial after the long one on the test split, mean over the seeds.
    """
    count, means = len(short), [statistics.mean(errors) for errors in zip(*long, strict=True)]
    per_seed = [tau(short, errors) for errors in long]
    return Agreement(
        count=count,
        tau=tau(short, means),
        per_seed=tuple(per_seed),
        mean=_over(statistics.mean, per_seed),
        spread=_over(statistics.stdev, per_seed),
        between_seeds=_over(statistics.mean, [tau(*pair) for pair in itertools.combinations(long, 2)]),
        test=tau(short, test),
        by_chance=math.sqrt(2 * (2 * count + 5) / (9 * count * (count - 1))) if count >= LEAST_AUDITED else None,
    )


def tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b; None where it is undefined, and for fewer than three."""
    found = float(kendalltau(first, second).statistic) if len(first) >= LEAST_AUDITED else math.nan
    return None if math.isnan(found) else found


def _over(reduce: Callable[[Sequence[float]], float], values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(reduce(known)) if len(known) == len(values) else None
