"""The front and its hypervolume. All objectives are minimised.

A point with a NaN or an infinite value is on no front and adds no volume.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Point = Sequence[float]


def front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other dominates, in ascending order of the coordinates.

    Of several equal points the first one is on the front.
    """
    order = sorted((i for i, point in enumerate(points) if _finite(point)), key=lambda i: (tuple(points[i]), i))
    kept: list[int] = []
    if order and len(points[order[0]]) == 2:  # the last one kept has the least second coordinate of all
        for index in order:
            if not kept or points[index][1] < points[kept[-1]][1]:
                kept.append(index)
        return kept
    for index in order:  # a point can only be dominated by one that comes before it in this order
        if not any(_covers(points[other], points[index]) for other in kept):
            kept.append(index)
    return kept


def staircase(costs: NDArray[np.float64], errors: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows that no other beats in cost and error, from the cheapest to the one of least error; all values finite.

    The same as `front` of pairs, for many of them at once.
    """
    order = np.lexsort((errors, costs))
    least = np.minimum.accumulate(errors[order])
    return order[np.concatenate([[True], least[1:] < least[:-1]])]  # type: ignore[no-any-return]


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Volume between the front and the reference point, by slicing along the last coordinate.

    Points that do not lie strictly below the reference in every coordinate add nothing.
    """
    inside = [tuple(p) for p in points if _finite(p) and all(a < b for a, b in zip(p, reference, strict=True))]
    if not inside:
        return 0.0
    if len(reference) == 1:
        return float(reference[0] - min(p[0] for p in inside))
    if len(reference) == 2:
        steps = [inside[i] for i in front(inside)]  # the first coordinate ascends, the second one descends
        above = [reference[1], *(p[1] for p in steps)]
        return float(sum((reference[0] - p[0]) * (high - p[1]) for high, p in zip(above, steps, strict=False)))
    inside = sorted({inside[i] for i in front(inside)}, key=lambda p: p[-1])
    ends = [p[-1] for p in inside[1:]] + [reference[-1]]
    return sum(
        (end - inside[i][-1]) * hypervolume([p[:-1] for p in inside[: i + 1]], reference[:-1])
        for i, end in enumerate(ends)
        if end > inside[i][-1]
    )


def _covers(a: Point, b: Point) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True))


def _finite(point: Point) -> bool:
    return all(math.isfinite(value) for value in point)
