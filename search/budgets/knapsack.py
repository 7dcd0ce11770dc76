"""The allocation of least total error on a budget: a multiple-choice knapsack over the branches of a model.

Every branch offers options, one per combination of the sizes of one of its operators, each with a cost and an error; one option
of every branch is taken. Errors of sites are in one unit and taken to add up. Solved by the Lagrangian relaxation
(search/budgets/relaxation.py); what its last step leaves of the budget is then filled by exchanges, of one branch or of two at
a time (search/budgets/exchanges.py). Many budgets and errors are solved together, and none depends on the others.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from objectives.cost.closed_form import CostModel
from objectives.cost.spec import Cost
from objectives.dense_model import DenseModel
from objectives.profile import Errors
from objectives.sensitivity import closed_form
from search.budgets.exchanges import exchange_one, exchange_two
from search.budgets.options import Floats, Indices, options_of
from search.budgets.relaxation import relaxed, weightings
from spaces.allocation import Allocation
from spaces.errors import AllocationError
from spaces.sites import Space

_TOGETHER = 1 << 16  # options of all rows that are solved at a time: what fits the caches


class Knapsack:
    """Least-error allocations of one space, for any budget.

    Args:
        space: what may be chosen; rival operators of a branch compete.
        costs: of this space.
        errors: site name -> size -> error.

    Attributes:
        branches: how many the space has.
        sites: names of the space's sites, in the order of every array over sites.
        names: of the costs, in the order of every array over costs.
    """

    def __init__(self, space: Space, costs: CostModel, errors: Errors) -> None:
        self.space = space
        self.sites = tuple(site.name for site in space.sites)
        self.names = costs.names
        self._errors = errors
        self._options = options_of(space, costs, errors)
        self.branches = len(self._options.starts)
        self._whole = np.array([site.dense for site in space.sites])

    def allocate(self, limits: Mapping[Cost, float], multipliers: Mapping[str, float] | None = None) -> Allocation:
        """The allocation of least total error whose costs keep `limits`.

        Args:
            limits: upper bounds on costs that are known.
            multipliers: site name -> logarithm of a factor on its errors; 0 where it is not given.

        Raises:
            AllocationError: the smallest allocation is above a limit.
        """
        logarithms = np.array([[(multipliers or {}).get(name, 0.0) for name in self.sites]])
        return self.allocation(self.solve(limits, logarithms, np.ones(1))[0])

    def solve(self, limits: Mapping[Cost, float], multipliers: Floats, shares: Floats) -> Indices:
        """Options of least total error, each row for itself, [rows, branches].

        Args:
            limits: upper bounds on costs that are known.
            multipliers: logarithms of factors on the sites' errors, [rows, sites].
            shares: of the limits that the budget of each row is, [rows].

        Raises:
            AllocationError: the smallest allocation is above a limit.
        """
        chosen, bounds = self.choose(limits, multipliers, shares[:, None])[:, 0], self._bounds(limits)
        for row, share, taken in zip(multipliers, shares, chosen, strict=True):
            exchange_two(self._options, self._options.weighted(row[None])[0], share * bounds, taken)
        return chosen

    def choose(self, limits: Mapping[Cost, float], multipliers: Floats, shares: Floats) -> Indices:
        """Options of small total error for several budgets: as `solve`, without its last exchanges.

        Args:
            limits: upper bounds on costs that are known.
            multipliers: logarithms of factors on the sites' errors, [rows, sites].
            shares: of the limits that the budgets of each row are, [rows, budgets].

        Returns:
            An option of every branch, [rows, budgets, branches].

        Raises:
            AllocationError: the smallest allocation is above a limit.
        """
        bounds, chosen = self._bounds(limits), np.empty((*shares.shape, self.branches), dtype=int)
        for rows, ways in weightings(self._options, bounds, shares.min(1, initial=np.inf)):
            together = max(1, _TOGETHER // (len(self._options.branch) * shares.shape[1]))
            for part in np.split(rows, range(together, len(rows), together)):
                errors = self._options.weighted(multipliers[part])
                chosen[part] = self._best(ways, errors, shares[part, :, None] * bounds)
        return chosen

    def sizes(self, chosen: Indices) -> Indices:
        """Sizes of all sites, [..., branches] -> [..., sites]."""
        return self._whole + self._options.sizes[chosen].sum(-2)  # type: ignore[no-any-return]

    def features(self, chosen: Indices) -> Floats:
        """Errors of all sites, before any multiplier, [..., branches] -> [..., sites]."""
        return self._options.features[chosen].sum(-2)  # type: ignore[no-any-return]

    def costs(self, chosen: Indices) -> Floats:
        """All known costs, [..., branches] -> [..., costs]."""
        return self._options.dense + self._options.costs[chosen].sum(-2)  # type: ignore[no-any-return]

    def features_of(self, allocation: Allocation) -> Floats:
        """Errors of all sites, before any multiplier, [sites]."""
        return np.array([self._errors[name][allocation[name]] for name in self.sites])

    def allocation(self, chosen: Indices) -> Allocation:
        """One option of every branch, [branches], as an allocation."""
        return Allocation(dict(zip(self.sites, self.sizes(chosen).tolist(), strict=True)))

    def _bounds(self, limits: Mapping[Cost, float]) -> Floats:
        return np.array([limits.get(cost, np.inf) for cost in self.names], dtype=float)

    def _best(self, ways: Sequence[Floats], errors: Floats, limits: Floats) -> Indices:
        """Optimal for one limit up to the last step of the hull; for several, the best of some ways to weigh them.

        Args:
            ways: weights of all options, [options] each.
            errors: of the options, [rows, options].
            limits: bounds on all costs, [rows, budgets, costs].
        """
        rows, budgets, _ = limits.shape
        each, found, lost = np.repeat(np.arange(rows), budgets), [], []
        for weights in ways:
            chosen, fits = relaxed(self._options, weights, errors, limits)
            kept, flat = np.flatnonzero(np.repeat(fits.all(1), budgets)), chosen.reshape(rows * budgets, -1)
            taken, repeated = flat[kept], errors[each[kept]]
            exchange_one(self._options, weights, repeated, limits.reshape(rows * budgets, -1)[kept], taken)
            flat[kept] = taken
            found.append(flat)
            lost.append(np.full(rows * budgets, np.inf))
            lost[-1][kept] = np.take_along_axis(repeated, taken, axis=1).sum(1)
        best = np.argmin(lost, axis=0)
        if not np.isfinite(np.min(lost, axis=0)).all():
            raise AllocationError(f"no allocation of space {self.space.name!r} keeps the budget {self._shown(limits)}")
        answers: Indices = np.array(found)[best, np.arange(rows * budgets)].reshape(rows, budgets, -1)
        return answers

    def _shown(self, limits: Floats) -> dict[Cost, float]:
        """The lowest of some budgets."""
        lowest = limits.reshape(-1, len(self.names)).min(0)
        return {cost: float(bound) for cost, bound in zip(self.names, lowest, strict=True) if np.isfinite(bound)}


def knapsack_of(dense: DenseModel, measured: bool) -> Knapsack:
    """The one that a search decodes with.

    Args:
        dense: of the search.
        measured: whether over the errors of the measured profile, else over the closed-form ones.
    """
    errors = dense.profile.errors if measured else closed_form(dense.factors)
    return Knapsack(dense.space, dense.costs, errors)
