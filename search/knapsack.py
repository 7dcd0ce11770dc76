"""The allocation of least total error on a budget: a multiple-choice knapsack over the branches of a model.

Every branch offers options, one per combination of the sizes of one of its operators, each with a cost and an error; one option
of every branch is taken. Errors are those of a `Profile`, which are in one unit for all sites and taken to add up.
Solved by the Lagrangian relaxation: on the lower convex hull of a branch's options the error saved per cost falls from step to
step, so taking all branches' steps in the order of that slope gives the optimum of every budget that it passes. What the last
step leaves of the budget is then filled, with the best affordable exchange at a time.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from objectives.cost import COSTS, Cost, CostModel
from objectives.sensitivity import Errors
from spaces.allocation import Allocation
from spaces.errors import AllocationError
from spaces.sites import Operator, Space

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Options:
    """What one operator of a branch offers.

    Attributes:
        operator: its sites name the columns of `sizes` and `errors`.
        sizes: [options, sites].
        costs: MACs and parameters less those of the dense branch, [options, 2].
        errors: of every site by itself, [options, sites].
    """

    operator: Operator
    sizes: NDArray[np.int64]
    costs: Floats
    errors: Floats


class Knapsack:
    """Least-error allocations of one space, for any budget.

    Args:
        space: what may be chosen; rival operators of a branch compete.
        costs: of this space.
        errors: site name -> size -> error.
    """

    def __init__(self, space: Space, costs: CostModel, errors: Errors) -> None:
        self.space, self.costs = space, costs
        self._dense = np.array([costs.dense[cost] for cost in COSTS], dtype=float)
        self._branches: dict[str, list[_Options]] = {branch: [] for branch in space.branches}
        for operator, count in costs.operators:
            sizes = np.array(list(itertools.product(*(site.choices for site in operator.sites))))
            parts = [site.part for site in operator.sites]
            whole = count({site.part: site.dense for site in operator.sites})
            counted = np.array([count(dict(zip(parts, row, strict=True))) for row in sizes.tolist()], dtype=float)
            found = [
                [errors[site.name][size] for site, size in zip(operator.sites, row, strict=True)] for row in sizes.tolist()
            ]
            options = _Options(operator, sizes, counted - np.array(whole), np.array(found))
            self._branches[operator.sites[0].branch].append(options)

    def allocate(self, limits: Mapping[Cost, float], multipliers: Mapping[str, float] | None = None) -> Allocation:
        """The allocation of least total error whose costs keep `limits`.

        Optimal for one limit up to the last step of the hull; several limits weigh alike, each as a share of its bound.

        Args:
            limits: upper bounds, in MACs or parameters.
            multipliers: site name -> logarithm of a factor on its errors; 0 where it is not given.

        Raises:
            AllocationError: the smallest allocation is above a limit.
        """
        bounds = np.array([limits.get(cost, np.inf) for cost in COSTS], dtype=float)
        branches = [self._tables(rivals, bounds, multipliers or {}) for rivals in self._branches.values()]
        hulls = [_hull(table[0], table[1]) for table in branches]
        chosen = [hull[0] for hull in hulls]
        total = self._dense + sum(table[2][index] for table, index in zip(branches, chosen, strict=True))
        if (total > bounds).any():
            raise AllocationError(f"no allocation of space {self.space.name!r} keeps the budget {dict(limits)}")
        steps = [
            ((table[1][before] - table[1][after]) / (table[0][after] - table[0][before]), branch, after)
            for branch, (table, hull) in enumerate(zip(branches, hulls, strict=True))
            for before, after in itertools.pairwise(hull)
        ]
        for _, branch, after in sorted(steps, key=lambda step: -step[0]):
            moved = total + branches[branch][2][after] - branches[branch][2][chosen[branch]]
            if (moved > bounds).any():
                break
            chosen[branch], total = after, moved
        while (exchange := _best_exchange(branches, chosen, total, bounds)) is not None:
            branch, after = exchange
            total = total + branches[branch][2][after] - branches[branch][2][chosen[branch]]
            chosen[branch] = after
        return self._allocation(chosen)

    def _tables(
        self, rivals: list[_Options], bounds: Floats, multipliers: Mapping[str, float]
    ) -> tuple[Floats, Floats, Floats]:
        """A branch's options: cost as a share of the budget, error, and costs themselves [options, 2]."""
        costs = np.concatenate([options.costs for options in rivals])
        errors = [
            options.errors @ np.exp([multipliers.get(site.name, 0.0) for site in options.operator.sites]) for options in rivals
        ]
        return (costs / bounds).sum(1), np.concatenate(errors), costs

    def _allocation(self, chosen: list[int]) -> Allocation:
        sizes: dict[str, int] = {}
        for rivals, index in zip(self._branches.values(), chosen, strict=True):
            for options in rivals:
                if 0 <= index < len(options.sizes):
                    sizes |= dict(
                        zip((site.name for site in options.operator.sites), options.sizes[index].tolist(), strict=True)
                    )
                index -= len(options.sizes)
        return self.space.identity().replace(sizes)


def _hull(costs: Floats, errors: Floats) -> list[int]:
    """Options on the lower convex hull of cost and error, from the cheapest to the one of least error."""
    hull: list[int] = []
    for index in np.lexsort((errors, costs)).tolist():
        if hull and errors[index] >= errors[hull[-1]]:
            continue
        if hull and costs[index] == costs[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1], costs, errors) <= _slope(hull[-1], index, costs, errors):
            hull.pop()
        hull.append(index)
    return hull


def _slope(a: int, b: int, costs: Floats, errors: Floats) -> float:
    return float((errors[a] - errors[b]) / (costs[b] - costs[a]))


def _best_exchange(
    branches: list[tuple[Floats, Floats, Floats]], chosen: list[int], total: Floats, bounds: Floats
) -> tuple[int, int] | None:
    """The branch and its other option that save most error per cost and still fit; None if there is none."""
    best: tuple[float, int, int] | None = None
    for branch, ((costs, errors, counted), now) in enumerate(zip(branches, chosen, strict=True)):
        saved = errors[now] - errors
        fits = (saved > 0) & (total + counted - counted[now] <= bounds).all(1)
        if fits.any():
            rates = np.where(fits, saved / np.maximum(costs - costs[now], 1e-12), -np.inf)
            index = int(rates.argmax())
            if best is None or rates[index] > best[0]:
                best = float(rates[index]), branch, index
    return None if best is None else best[1:]
