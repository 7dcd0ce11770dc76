"""Which trials an audit of the short fine-tune measures, and how well two fine-tunes agree on their order."""

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

import pandas as pd
from scipy.stats import kendalltau

from objectives.recipes.registry import RECIPES
from search.config import LEAST_AUDITED
from search.report.audit_tables import BAND
from search.trial import DENSE


def candidates(trials: pd.DataFrame) -> pd.DataFrame:
    """Finished trials that are built from the factors: neither the dense model nor made by a recipe."""
    return trials[(trials["state"] == "COMPLETE") & ~trials["label"].isin((DENSE, *RECIPES))]


def spread_over(trials: pd.DataFrame, column: str, count: int) -> pd.DataFrame:
    """At most so many rows, from the least of a column to the greatest at even steps of rank."""
    ordered = trials.sort_values([column, "number"])
    if len(ordered) <= count:
        return ordered
    return ordered.iloc[[round(index * (len(ordered) - 1) / (count - 1)) for index in range(count)]]


def similar(trials: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The most trials whose costs are all within `BAND` of each other; of several such bands the cheapest."""
    ordered = trials.sort_values(cost)
    inside = [(ordered[cost] >= least) & (ordered[cost] <= BAND * least) for least in ordered[cost]]
    return ordered[max(inside, key=lambda rows: rows.sum())] if inside else ordered


def agreement(short: Sequence[float], long: Sequence[Sequence[float]], test: Sequence[float]) -> dict[str, Any]:
    """Kendall's tau between the order of trials by a short fine-tune and by a long one.

    Args:
        short: error of every trial.
        long: for each seed, the error of every trial.
        test: error of every trial after the long one on the test split, mean over the seeds.

    Returns:
        tau (of `short` with the mean over seeds), per_seed with its mean and spread (standard deviation), between_seeds (of the
        long fine-tune with itself: what the noise allows), test (of `short` with `test`), and by_chance, the standard deviation
        of tau between unrelated orders. None where it is undefined: fewer than three trials, or all equal.
    """
    count, means = len(short), [statistics.mean(errors) for errors in zip(*long, strict=True)]
    per_seed = [tau(short, errors) for errors in long]
    return {
        "count": count,
        "tau": tau(short, means),
        "per_seed": per_seed,
        "mean": _over(statistics.mean, per_seed),
        "spread": _over(statistics.stdev, per_seed),
        "between_seeds": _over(statistics.mean, [tau(*pair) for pair in itertools.combinations(long, 2)]),
        "test": tau(short, test),
        "by_chance": math.sqrt(2 * (2 * count + 5) / (9 * count * (count - 1))) if count >= LEAST_AUDITED else None,
    }


def tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b; None where it is undefined, and for fewer than three."""
    found = float(kendalltau(first, second).statistic) if len(first) >= LEAST_AUDITED else math.nan
    return None if math.isnan(found) else found


def _over(reduce: Any, values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(reduce(known)) if len(known) == len(values) else None
