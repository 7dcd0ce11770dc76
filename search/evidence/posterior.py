"""The errors that fine-tuned models have on images that nobody has seen: expected, and how surely.

An error on a few hundred or thousand images is mostly luck where candidates differ little. Their divergence from the dense
model is known far better, since it needs no labels. So errors are taken to grow with it:

    error = level + (slope + deviation) * KL.

The level is that of the dense model (KL 0), which is measured on the same images. The slope, one for all and above 0, is
uncertain; the deviation of every model is normal; both have the size of the largest posterior density. What is measured
differs from that by the luck of the images. Its covariance over models is measured too: they share most of it, so differences
are known better than errors. All is Gaussian, and the posterior is exact. Alternatives and how often intervals hold:
benchmarks/results/evidence_cpu_202611.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product, starmap
from typing import NamedTuple

import numpy as np

from search.evidence.intervals import WIDTH, Interval, error_interval
from search.evidence.sample import DENSE, Floats, Sample

# Priors of the slope, error by nat, and of the spread of the deviations: median, and standard deviation of the logarithm; and
# which ones are tried. All slopes are above 0: else luck would have whoever diverges most picked.
_SLOPE, _SPREAD = (0.4, 0.6), (0.12, 0.7)
_SLOPES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.75, 1.0)
_SPREADS = (0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.45, 0.7)
_UNSURE = 0.25  # standard deviation of the slope as a share of it
_LEVEL = 0.3  # standard deviation of the level's prior: it says nothing
OF_ALLOCATION = 0.5  # share of a deviation's variance that fine-tunes of one allocation have in common
_LEAST = 1e-8  # variance
_MOST = 300  # models that the spread is learnt from, evenly spaced over all


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Normal posterior of errors on endless images like those of the search split.

    Attributes:
        numbers: of the trials, in ascending order.
        means: expected errors, [trials].
        covariance: [trials, trials].
        images: of the search split; 0 where nothing is known of single images.
        tested: of the test split; intervals are those of an error on so many.
        own: variance of each error that fine-tunes of one allocation do not have in common, [trials]; empty where the
            evidence was read from a file.
        luck: covariance that what was measured has by the luck of the images, [trials, trials]; likewise.
    """

    numbers: tuple[int, ...] = ()
    means: Floats
    covariance: Floats
    images: int = 0
    tested: int = 0
    own: Floats = field(default_factory=lambda: np.zeros(0))
    luck: Floats = field(default_factory=lambda: np.zeros((0, 0)))

    def __contains__(self, number: int) -> bool:
        return number in self._rows

    def mean(self, number: int) -> float:
        """Expected error of a trial.

        Raises:
            KeyError: nothing is known of it.
        """
        return float(self.means[self._rows[number]])

    def expected(self, number: int) -> Interval:
        """Expected error of a trial on the test split, with its interval.

        Raises:
            KeyError: nothing is known of it.
        """
        row = self._rows[number]
        mean = float(np.clip(self.means[row], 0.0, 1.0))
        sampled = mean * (1 - mean) / self.tested if self.tested else 0.0
        return error_interval(mean, float(self.covariance[row, row]) + sampled)

    def difference(self, number: int, other: int) -> Interval:
        """By how much the error of one trial is above that of another, on endless images."""
        first, second = self._rows[number], self._rows[other]
        mean = float(self.means[first] - self.means[second])
        spread = WIDTH * float(np.sqrt(max(self._variance_between(first, second), 0.0)))
        return Interval(mean=mean, low=mean - spread, high=mean + spread)

    def told_apart(self, number: int, other: int) -> bool:
        """Whether one of the two is better beyond chance."""
        return number != other and not self.difference(number, other).holds_zero

    def of(self, numbers: Sequence[int]) -> tuple[Floats, Floats]:
        """Expected errors of some trials and their covariance, [trials] and [trials, trials].

        Raises:
            KeyError: nothing is known of one of them.
        """
        rows = [self._rows[number] for number in numbers]
        return self.means[rows], self.covariance[np.ix_(rows, rows)]

    def own_variance(self, number: int) -> float:
        """Variance of a trial's error by what another fine-tune of its allocation would not have."""
        return float(self.own[self._rows[number]])

    def luck_between(self, number: int, other: int) -> float:
        """Variance of the measured difference of two trials' errors by the luck of the images."""
        return max(_variance(self.luck, self._rows[number], self._rows[other]), 0.0)

    def _variance_between(self, first: int, second: int) -> float:
        return _variance(self.covariance, first, second)

    @cached_property
    def _rows(self) -> dict[int, int]:
        return {number: row for row, number in enumerate(self.numbers)}


def _variance(covariance: Floats, first: int, second: int) -> float:
    """Of the difference of two."""
    return float(covariance[first, first] + covariance[second, second] - 2 * covariance[first, second])


NO_EVIDENCE = Evidence(means=np.zeros(0), covariance=np.zeros((0, 0)))


def evidence_of(sample: Sample, allocations: Mapping[int, object], tested: int) -> Evidence:
    """What the search split tells of fine-tuned models.

    Args:
        sample: of them, and of the dense model as loaded under the number -1.
        allocations: number -> what was built; those of one allocation have something in common. Others are passed over.
        tested: images of the test split; 0 where that is not known.
    """
    rows = [row for row, number in enumerate(sample.numbers) if number in allocations]
    if not rows:
        return NO_EVIDENCE
    rows.sort(key=lambda row: sample.numbers[row])
    anchored = [*([sample.numbers.index(DENSE)] if DENSE in sample.numbers else []), *rows]
    errors, luck = (
        found[np.ix_(anchored)] if found.ndim == 1 else found[np.ix_(anchored, anchored)] for found in sample.errors()
    )
    divergences, moved = sample.divergences()
    divergences, moved = np.maximum(divergences[anchored], 0.0), moved[np.ix_(anchored, anchored)]
    numbers = [sample.numbers[row] for row in anchored]
    together = _together([allocations.get(number) for number in numbers])
    luck = luck + _SLOPE[0] ** 2 * moved + _LEAST * np.eye(len(numbers))
    chosen = np.unique(np.linspace(0, len(numbers) - 1, min(len(numbers), _MOST)).round().astype(int))
    some = np.ix_(chosen, chosen)
    curve = _curve(errors[chosen], divergences[chosen], luck[some], together[some])
    means, covariance = _posterior(errors, divergences, luck, together, curve)
    skipped = len(anchored) - len(rows)
    return Evidence(
        numbers=tuple(numbers[skipped:]), means=means[skipped:], covariance=covariance[skipped:, skipped:],
        images=sample.images, tested=tested,
        own=((1 - OF_ALLOCATION) * np.square(curve.spread * divergences))[skipped:], luck=luck[skipped:, skipped:],
    )  # fmt: skip


def _together(allocations: Sequence[object]) -> Floats:
    """Correlation of the deviations of models, [models, models]."""
    same = np.array([[mine is not None and mine == other for other in allocations] for mine in allocations])
    shared: Floats = OF_ALLOCATION * same.astype(float)
    np.fill_diagonal(shared, 1.0)
    return shared


class _Curve(NamedTuple):
    """How errors grow with the divergence: the slope that is likeliest, and the spread of the models' deviations from it."""

    slope: float
    spread: float


def _prior(divergences: Floats, together: Floats, curve: _Curve, level: float) -> tuple[Floats, Floats]:
    """Mean and covariance of errors by their divergences alone, [models] and [models, models]."""
    mean = level + curve.slope * divergences
    products = np.outer(divergences, divergences)
    return mean, _LEVEL**2 + products * ((_UNSURE * curve.slope) ** 2 + curve.spread**2 * together)


def _curve(errors: Floats, divergences: Floats, luck: Floats, together: Floats) -> _Curve:
    """The curve of the largest posterior density."""

    def density(curve: _Curve) -> float:
        mean, covariance = _prior(divergences, together, curve, float(errors[0]))
        factor = np.linalg.cholesky(covariance + luck)
        solved = np.linalg.solve(factor, errors - mean)
        prior = _distance(curve.slope, *_SLOPE) ** 2 + _distance(curve.spread, *_SPREAD) ** 2
        return float(-np.log(np.diag(factor)).sum() - 0.5 * solved @ solved - 0.5 * prior)

    return max(starmap(_Curve, product(_SLOPES, _SPREADS)), key=density)


def _distance(value: float, median: float, deviation: float) -> float:
    """From the median, in standard deviations of the logarithm."""
    return float(np.log(value / median) / deviation)


def _posterior(errors: Floats, divergences: Floats, luck: Floats, together: Floats, curve: _Curve) -> tuple[Floats, Floats]:
    """Mean and covariance of errors by all that was measured."""
    mean, covariance = _prior(divergences, together, curve, float(errors[0]))
    weights = np.linalg.solve(covariance + luck, covariance).T
    found: Floats = covariance - weights @ covariance
    return mean + weights @ (errors - mean), (found + found.T) / 2
