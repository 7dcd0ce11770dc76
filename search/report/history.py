"""How a search went: hypervolume and best error after every finished trial."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from search.pareto import front, hypervolume
from search.run.schemas import front_columns


def progress_of(points: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> dict[str, Sequence[float | None]]:
    """After every finished trial, in the order in which they ended.

    Args:
        points: finished trials: number, error, shares of costs kept, seconds and ended.
        summary: objectives and targets of the run.

    Returns:
        trials: 1, 2, ...; hours since the first one began; hypervolume, as in pareto.json; best: the smallest error, in
        percent, under the first target, None before one is under it.
    """
    columns = front_columns(summary["objectives"])
    ordered = sorted(points, key=lambda row: (row["ended"], row["number"]))
    limits = {target["cost"]: target["limit"] for target in summary["targets"] if target["group"] == 0}
    hours, volumes, bests = _hours(ordered), list[float | None](), list[float | None]()
    kept: list[tuple[float, ...]] = []
    volume, best = 0.0, None
    for row in ordered:
        point = tuple(float(row[column]) for column in columns)
        if not any(all(a <= b for a, b in zip(other, point, strict=True)) for other in kept):  # nearly all change nothing
            kept = [[*kept, point][index] for index in front([*kept, point])]
            volume = hypervolume(kept, [1.0] * len(columns))
        if all(row[cost] <= limit for cost, limit in limits.items()):
            best = 100 * row["error"] if best is None else min(best, 100 * row["error"])
        volumes.append(volume)
        bests.append(best)
    return {"trials": list(range(1, len(ordered) + 1)), "hours": hours, "hypervolume": volumes, "best": bests}


def _hours(ordered: Sequence[Mapping[str, Any]]) -> list[float]:
    ends = [datetime.fromisoformat(row["ended"]).timestamp() for row in ordered]
    begins = [end - row["seconds"] for end, row in zip(ends, ordered, strict=True)]
    return [(end - min(begins)) / 3600 for end in ends]
