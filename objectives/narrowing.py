"""What narrower widths cost as built, on a few budgets: the scale that their closed-form errors are on.

A schedule's divergence is measured, that of widths is a sum of closed-form errors, which may be several times too small where
errors of tokens go the same way. To compare the two, some allocations with all tokens and branches are measured.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from objectives.cost.closed_form import CostModel
from objectives.cost.spec import MAIN
from objectives.divergence import Reference
from objectives.profile import Errors
from spaces.allocation import Allocation
from spaces.factors import Factors
from spaces.sites import Operator, Space

Floats = NDArray[np.float64]

_LEVELS, _MOST, _LEAST = 6, 0.8, 1.1  # budgets; the highest as a share of all MACs; the lowest as a multiple of the fewest
_BISECTIONS = 40


def measure_widths(
    factors: Factors,
    reference: Reference,
    errors: Errors,
    costs: CostModel,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[tuple[Allocation, float], ...]:
    """Allocations of small total error on some budgets, and their mean divergence from the dense model; the dearest first.

    Args:
        factors: of a space.
        reference: the dense model of the factors on some images.
        errors: site name -> size -> closed-form error.
        costs: of the space.
        progress: called with (allocations done, allocations in all).
    """
    found, wanted = [], list(dict.fromkeys(narrowed(factors.space, errors, costs)))
    for done, allocation in enumerate(wanted):
        progress(done, len(wanted))
        found.append((allocation, max(0.0, reference.divergence(factors.build(allocation), "narrower widths"))))
    progress(len(wanted), len(wanted))
    return tuple(found)


def narrowed(space: Space, errors: Errors, costs: CostModel) -> Iterator[Allocation]:
    """Allocations on budgets that are spaced evenly in logarithm, with the first operator of every branch.

    All branches trade error for MACs at one rate, and the rate follows from the budget.
    """
    lossless = space.lossless()
    within = costs.within(space.schedule(lossless))
    branches = [_Choices(rivals[0], errors, within) for rivals in space.rivals.values() if rivals]
    whole = within.base[MAIN.name]
    least = whole + sum(branch.macs.min() for branch in branches)
    for macs in np.geomspace(_MOST * whole, min(_LEAST * least, _MOST * whole), _LEVELS):
        low, high = -60.0, 60.0  # logarithm of the error that a MAC is worth
        for _ in range(_BISECTIONS):
            rate = (low + high) / 2
            spent = whole + sum(branch.macs[branch.best(rate)] for branch in branches)
            low, high = (rate, high) if spent > macs else (low, rate)
        sizes = {name: size for branch in branches for name, size in branch.sizes(high).items()}
        yield lossless.replace(sizes)


class _Choices:
    """All combinations of the sizes of one operator.

    Attributes:
        macs: less the dense branch's, [combinations].
    """

    def __init__(self, operator: Operator, errors: Errors, costs: CostModel) -> None:
        self._names = [site.name for site in operator.sites]
        self._rows: Sequence[tuple[int, ...]] = list(itertools.product(*(site.choices for site in operator.sites)))
        self._errors = np.array(
            [sum(errors[name][size] for name, size in zip(self._names, row, strict=True)) for row in self._rows]
        )
        count = next(
            found for other, found in costs.operators if (other.branch, other.name) == (operator.branch, operator.name)
        )
        parts, cost = [site.part for site in operator.sites], costs.names.index(MAIN.name)
        counted = [count(dict(zip(parts, row, strict=True)))[cost] for row in self._rows]
        self.macs: Floats = np.array(counted, dtype=float) - count(operator.dense_sizes)[cost]

    def best(self, rate: float) -> int:
        """The combination of least error and MACs, at a rate between them."""
        return int((self._errors + np.exp(rate) * self.macs).argmin())

    def sizes(self, rate: float) -> dict[str, int]:
        """Sizes of this combination."""
        return dict(zip(self._names, self._rows[self.best(rate)], strict=True))
