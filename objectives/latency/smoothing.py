"""What is made of the noise of timings: a grid is as smooth as its noise allows for, and falls with every size."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from objectives.latency.grid import Floats


def smoothed(axes: Mapping[str, Sequence[int]], saved: Floats, noise: float) -> Floats:
    """What sizes save, from what was measured.

    A search looks for the sizes that save most, and so for those whose noise is in their favour. The part of the residuals of a
    smooth trend that the noise explains is taken away (James & Stein 1961); without noise, the steps of a device stay.

    Args:
        axes: part -> sizes.
        saved: at every combination, [sizes, ...].
        noise: standard error of each of them.
    """
    features = _features(axes)
    trend = features @ np.linalg.lstsq(features, saved.ravel(), rcond=None)[0]
    residuals = saved.ravel() - trend
    left = len(residuals) - np.linalg.matrix_rank(features)
    variance = float(residuals @ residuals) / left if left > 0 else 0.0
    signal = max(0.0, 1 - noise**2 / variance) if variance > 0 else 1.0
    return monotone((trend + signal * residuals).reshape(saved.shape))


def monotone(saved: Floats) -> Floats:
    """The same, made to fall with every size: the mean of the nearest grids above and below that do.

    Proposals are fitted to budgets by making sizes smaller, which must not cost more.
    """
    above, below = saved, saved
    for axis in range(saved.ndim):
        above = np.flip(np.maximum.accumulate(np.flip(above, axis), axis), axis)
        below = np.minimum.accumulate(below, axis)
    return (above + below) / 2


def _features(axes: Mapping[str, Sequence[int]]) -> Floats:
    """Of a trend that is linear in every size, and quadratic along axes that are long enough: [points, features]."""
    columns = [np.array(column, dtype=float) for column in zip(*itertools.product(*axes.values()), strict=True)]
    scaled = [column / max(1.0, column.max()) for column in columns]  # sizes of 0 alone stay what they are
    products = [
        np.prod([np.ones(len(scaled[0])), *chosen], axis=0)
        for count in range(len(scaled) + 1)
        for chosen in itertools.combinations(scaled, count)
    ]
    squares = [column**2 for column, axis in zip(scaled, axes.values(), strict=True) if len(axis) > 3]
    return np.stack([*products, *squares], axis=1)
