"""Whether the best trial under a target is among the smallest that the search proposes: then smaller models may do as well."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from objectives.cost.spec import COSTS

_NEAR = 0.05  # share of the band, from its lower end on


def lower_edges(summary: Mapping[str, Any], band: float) -> Iterator[tuple[int, str]]:
    """The best trials that lie there, and of each a sentence that says so and which target to try next.

    Of a target whose band ends where the space does, or below which another target is searched, nothing is to be tried.

    Args:
        summary: the content of pareto.json.
        band: share of every target that proposals use at least.
    """
    rows = {row["number"]: row for row in summary["front"]}
    groups = [list(group) for _, group in groupby(summary["targets"], key=lambda entry: entry["group"])]
    for group, number in zip(groups, summary["best"], strict=True):
        if number not in rows or _searched_below(group, groups):
            continue
        load = max(rows[number][entry["cost"]] / entry["limit"] for entry in group)
        lower = [(entry["cost"], band * entry["limit"]) for entry in group]
        if load <= band + _NEAR * (1 - band) and all(limit > summary["reach"][cost][0] for cost, limit in lower):
            yield number, _sentence(group, number, load, band, _target(lower, summary["dense"]))


def _sentence(group: list[dict[str, Any]], number: int, load: float, band: float, target: str) -> str:
    under = " and ".join(entry["text"] for entry in group)
    used = f"trial {number}, the best under {under}, uses {load:.1%} of it, and this search proposes nothing below {band:.0%}"
    return f"{used}: smaller models may do as well: try --target {target} with another --output"


def _target(lower: list[tuple[str, float]], dense: Mapping[str, float]) -> str:
    """The lower end of the band as a target: shares of the dense model."""
    return ",".join(f"{COSTS[cost].flag}={100 * limit / dense[cost]:.3g}%" for cost, limit in lower)


def _searched_below(group: list[dict[str, Any]], groups: list[list[dict[str, Any]]]) -> bool:
    """Whether another target bounds the same costs lower."""
    limits = {entry["cost"]: entry["limit"] for entry in group}
    others = ({entry["cost"]: entry["limit"] for entry in other} for other in groups if other is not group)
    return any(other.keys() == limits.keys() and all(other[cost] < limits[cost] for cost in limits) for other in others)
