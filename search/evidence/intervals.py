"""Intervals of 95 %: of an error, and of the difference of two errors on the same images."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WIDTH = 1.959964  # standard deviations on either side
_LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether it cannot be told from 0."""
        return self.low <= 0 <= self.high


def error_interval(mean: float, variance: float) -> Interval:
    """The interval of an error that is known with some variance, within [0, 1] (Wilson 1927).

    The variance is that of a share of so many images as it fits; so an error of 0 has an interval too.

    Args:
        mean: the error, in [0, 1].
        variance: above 0.
    """
    likely = max(mean, math.sqrt(variance))
    spread = mean * (1 - mean)
    images = likely * (1 - min(likely, 0.5)) / variance
    square = WIDTH**2 / images
    center = (mean + square / 2) / (1 + square)
    half = WIDTH / (1 + square) * math.sqrt(spread / images + square / 4 / images)
    return Interval(mean=mean, low=max(0.0, min(mean, center - half)), high=min(1.0, max(mean, center + half)))


def difference_interval(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Interval:
    """Error of one model minus that of another on the same images, exact for few of them (McNemar 1947; Clopper, Pearson 1934).

    Only images that one model alone has wrong tell anything; which of the two it is, is binomial.

    Args:
        first, second: whether the answer of each model is wrong, [images].
    """
    worse, better = int((first & ~second).sum()), int((second & ~first).sum())
    told, images = worse + better, len(first)
    if not told:
        return Interval(mean=0.0, low=0.0, high=0.0)
    from scipy.special import betaincinv  # not needed by those who only read a run

    tail = (1 - _LEVEL) / 2
    low = float(betaincinv(worse, better + 1, tail)) if worse else 0.0
    high = float(betaincinv(worse + 1, better, 1 - tail)) if better else 1.0
    return Interval(
        mean=(worse - better) / images, low=told * (2 * low - 1) / images, high=told * (2 * high - 1) / images
    )  # fmt: skip
