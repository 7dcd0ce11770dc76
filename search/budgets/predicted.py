"""The allocation of least predicted error on a budget: what a search begins with, before anything is fine-tuned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from objectives.cost.spec import Cost
from search.budgets.knapsack import Knapsack
from search.budgets.outline import outline_of
from spaces.allocation import Allocation


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """An allocation that was chosen without a candidate being measured.

    Attributes:
        allocation: of least predicted error, inside the frame where that is least.
        divergence: expected from the dense model, in nats.
    """

    allocation: Allocation
    divergence: float


def predicted(knapsack: Knapsack, limits: Mapping[Cost, float], shares: Sequence[float] = (1.0,)) -> tuple[Predicted, ...]:
    """The allocations of least predicted error on some shares of a budget, exactly within it.

    Args:
        knapsack: over the errors of sites, with the frames.
        limits: upper bounds on costs that are known.
        shares: of all of these bounds, ascending.

    Raises:
        AllocationError: the smallest allocation is above a bound.
    """
    outline = outline_of(knapsack, limits, np.array(shares))
    return tuple(
        _inside(knapsack, {cost: share * limit for cost, limit in limits.items()}, outline.best(share)) for share in shares
    )


def _inside(knapsack: Knapsack, limits: Mapping[Cost, float], frame: int) -> Predicted:
    """What a frame allows."""
    allocation, frames = knapsack.allocate(limits, frame=frame), knapsack.frames
    widths = frames.divergence_of(np.array([knapsack.features_of(allocation).sum()]))[0]
    return Predicted(allocation=allocation, divergence=float(widths + frames.features[frame].sum()))
