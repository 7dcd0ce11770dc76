"""What the profile alone expects of every frame on some shares of a target."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from objectives.cost.spec import Cost
from search.budgets.knapsack import Knapsack
from search.budgets.options import Floats, Indices
from spaces.errors import AllocationError

_LOADS = 9  # shares of a band that frames are compared on
UNREACHABLE = 1e9  # nats, of a frame that cannot keep a budget: where merging takes longer than it saves, say


@dataclass(frozen=True, eq=False)
class Outline:
    """Expected divergences on some shares of one target.

    Attributes:
        shares: of the target, ascending, [shares].
        widths: of the least-error widths inside every frame, by the profile on a measured scale, [frames, shares].
        parts: of the parts of the frames, [frames, parts].
    """

    shares: Floats
    widths: Floats
    parts: Floats

    @property
    def least(self) -> Floats:
        """The lowest of the shares that every frame keeps, [frames]; infinite where it keeps none."""
        kept = self.widths < UNREACHABLE
        return np.where(kept.any(1), self.shares[kept.argmax(1)], np.inf)

    def best(self, share: float) -> int:
        """The frame of least expected divergence on a share of the target."""
        return int(self.expected(np.array([share]))[:, 0].argmin())

    def drawn(self, rng: np.random.Generator, shares: Floats, multipliers: Floats, spread: float) -> Indices:
        """Frames for some budgets: those of least expected divergence, had it an error.

        Args:
            rng: of the draws.
            shares: of the target, [rows].
            multipliers: logarithms of factors on the divergences of the parts of frames, [rows, parts].
            spread: standard deviation of the logarithm of the error.

        Returns:
            [rows].
        """
        lost: Floats = self._interpolated(shares) + self.parts @ np.exp(multipliers).T
        return (lost * np.exp(spread * rng.standard_normal(lost.shape))).argmin(0)  # type: ignore[no-any-return]

    def expected(self, shares: Floats) -> Floats:
        """Expected divergence of every frame, [frames, rows]."""
        lost: Floats = self._interpolated(shares) + self.parts.sum(1, keepdims=True)
        return lost

    def _interpolated(self, shares: Floats) -> Floats:
        return np.array([np.interp(shares, self.shares, row) for row in self.widths])


def outline_of(knapsack: Knapsack, limits: Mapping[Cost, float], shares: Floats) -> Outline:
    """The outline of a target.

    Args:
        knapsack: over the profile, with the frames.
        limits: of the target.
        shares: of it, ascending, [shares]; `band` has those of a search.
    """
    count = len(knapsack.frames)
    if count == 1:
        return Outline(shares, np.zeros((1, len(shares))), knapsack.frames.features)
    widths = np.array([_widths(knapsack, limits, shares, frame) for frame in range(count)])
    expected = np.where(widths < UNREACHABLE, knapsack.frames.divergence_of(widths), UNREACHABLE)
    return Outline(shares, expected, knapsack.frames.features)


def band(low: float) -> Floats:
    """Shares from the lowest that is aimed at to all of a target, [shares]."""
    return np.linspace(low, 1.0, _LOADS)


def _widths(knapsack: Knapsack, limits: Mapping[Cost, float], shares: Floats, frame: int) -> list[float]:
    """Errors of the least-error widths inside a frame on shares of a target; a huge one where it cannot keep a share."""
    zeros, frames = np.zeros((1, len(knapsack.sites))), np.array([frame])
    try:
        (chosen,) = knapsack.choose(limits, zeros, shares[None], frames)
    except AllocationError:
        if len(shares) == 1:
            return [UNREACHABLE]
        return [error for share in shares for error in _widths(knapsack, limits, np.array([share]), frame)]
    return knapsack.features(chosen)[:, : len(knapsack.sites)].sum(1).tolist()  # type: ignore[no-any-return]
