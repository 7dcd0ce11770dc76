"""The allocation of least total error on a budget: a multiple-choice knapsack over the branches of a model.

Every branch offers options, one per combination of the sizes of one of its operators, each with a cost and an error; one option
of every branch is taken. Errors of sites are in one unit and taken to add up. Solved by the Lagrangian relaxation: on the lower
convex hull of a branch's options the error saved per cost falls from step to step, so taking all branches' steps in the order
of that slope gives the optimum of every budget that it passes. What the last step leaves of the budget is then filled by
exchanges, of one branch or of two at a time.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.cost.closed_form import CostModel
from objectives.cost.spec import Cost
from objectives.dense_model import DenseModel
from objectives.profile import Errors
from objectives.sensitivity import closed_form
from search.pareto import staircase
from spaces.allocation import Allocation
from spaces.errors import AllocationError
from spaces.sites import Operator, Space

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

# Options on either side of a branch's own, in the order of their costs, that exchanges of two branches look at.
_NEAR = 4
_EMPHASISED = 20  # times that a bound may get more weight
_LESS = 0.1  # weight of the others where one bound weighs most
_ROUNDING = 1 + 1e-12  # of costs that are exactly on a bound


class Knapsack:
    """Least-error allocations of one space, for any budget.

    Args:
        space: what may be chosen; rival operators of a branch compete.
        costs: of this space.
        errors: site name -> size -> error.

    Attributes:
        sites: names of the space's sites, in the order of every array over sites.
        names: of the costs, in the order of every array over costs.
    """

    def __init__(self, space: Space, costs: CostModel, errors: Errors) -> None:
        self.space = space
        self.sites = tuple(site.name for site in space.sites)
        self._errors = errors
        self.names = costs.names
        self._dense = np.array([costs.dense[cost] for cost in self.names], dtype=float)
        counts = {id(operator): count for operator, count in costs.operators}
        tables = [[self._options(operator, counts[id(operator)]) for operator in rivals] for rivals in space.branches.values()]
        lengths = [sum(len(sizes) for sizes, _, _ in rivals) for rivals in tables]
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._branch = np.repeat(np.arange(len(tables)), lengths)
        rows = list(itertools.chain.from_iterable(tables))
        self._sizes = np.concatenate([sizes for sizes, _, _ in rows])  # [options, sites], less the dense sizes
        self._features = np.concatenate([features for _, features, _ in rows])  # [options, sites]
        self._costs = np.concatenate([counted for _, _, counted in rows])  # [options, costs], less the dense branch's
        self._whole = np.array([site.dense for site in space.sites])

    def allocate(self, limits: Mapping[Cost, float], multipliers: Mapping[str, float] | None = None) -> Allocation:
        """The allocation of least total error whose costs keep `limits`.

        Args:
            limits: upper bounds on costs that are known.
            multipliers: site name -> logarithm of a factor on its errors; 0 where it is not given.

        Raises:
            AllocationError: the smallest allocation is above a limit.
        """
        logarithms = np.array([(multipliers or {}).get(name, 0.0) for name in self.sites])
        bounds, errors = self._bounds(limits), self._features @ np.exp(logarithms)
        chosen = self._relaxed(bounds, errors, (1.0,))[0]
        for pair in self._pairs(chosen, bounds, errors):
            chosen[self._branch[list(pair)]] = pair
        return self.allocation(chosen)

    def choose(self, limits: Mapping[Cost, float], multipliers: Floats, shares: Sequence[float]) -> Indices:
        """Options of small total error for several budgets, [budgets, branches]: as `allocate`, without its last exchanges.

        Args:
            limits: upper bounds on costs that are known.
            multipliers: logarithms of factors on the sites' errors, [sites].
            shares: of the limits that each budget is.

        Raises:
            AllocationError: the smallest allocation is above a limit.
        """
        return self._relaxed(self._bounds(limits), self._features @ np.exp(multipliers), shares)

    def sizes(self, chosen: Indices) -> Indices:
        """Sizes of all sites, [..., branches] -> [..., sites]."""
        return self._whole + self._sizes[chosen].sum(-2)  # type: ignore[no-any-return]

    def features(self, chosen: Indices) -> Floats:
        """Errors of all sites, before any multiplier, [..., branches] -> [..., sites]."""
        return self._features[chosen].sum(-2)  # type: ignore[no-any-return]

    def costs(self, chosen: Indices) -> Floats:
        """All known costs, [..., branches] -> [..., costs]."""
        return self._dense + self._costs[chosen].sum(-2)  # type: ignore[no-any-return]

    def features_of(self, allocation: Allocation) -> Floats:
        """Errors of all sites, before any multiplier, [sites]."""
        return np.array([self._errors[name][allocation[name]] for name in self.sites])

    def allocation(self, chosen: Indices) -> Allocation:
        """One option of every branch, [branches], as an allocation."""
        return Allocation(dict(zip(self.sites, self.sizes(chosen).tolist(), strict=True)))

    def _bounds(self, limits: Mapping[Cost, float]) -> Floats:
        return np.array([limits.get(cost, np.inf) for cost in self.names], dtype=float)

    def _options(self, operator: Operator, count: Any) -> tuple[Indices, Floats, Floats]:
        """What one operator offers its branch: sizes less the dense ones, errors, and costs less the dense ones."""
        columns = [self.sites.index(site.name) for site in operator.sites]
        rows = np.array(list(itertools.product(*(site.choices for site in operator.sites))))
        parts = [site.part for site in operator.sites]
        counted = np.array([count(dict(zip(parts, row, strict=True))) for row in rows.tolist()], dtype=float)
        sizes, errors = np.zeros((len(rows), len(self.sites)), dtype=int), np.zeros((len(rows), len(self.sites)))
        for position, (column, site) in enumerate(zip(columns, operator.sites, strict=True)):
            sizes[:, column] = rows[:, position] - site.dense
            errors[:, column] = [self._errors[site.name][size] for size in rows[:, position].tolist()]
        whole = count(operator.dense_sizes)
        return sizes, errors, counted - np.array(whole)

    def _relaxed(self, bounds: Floats, errors: Floats, shares: Sequence[float]) -> Indices:
        """Optimal for one limit up to the last step of the hull; for several, the best of some ways to weigh them."""
        found = []
        for weights in self._weightings(bounds, min(shares)):
            with suppress(AllocationError):
                found.append(self._along(weights, bounds, errors, shares))
        if not found:
            limits = {cost: float(bound) for cost, bound in zip(self.names, bounds, strict=True) if np.isfinite(bound)}
            raise AllocationError(f"no allocation of space {self.space.name!r} keeps the budget {limits}")
        best = np.array([errors[chosen].sum(-1) for chosen in found]).argmin(0)
        return np.array([found[way][share] for share, way in enumerate(best)])

    def _along(self, weights: Floats, bounds: Floats, errors: Floats, shares: Sequence[float]) -> Indices:
        """Options for several shares of the limits, where options cost `weights`."""
        hulls = [_hull(curve, weights, errors) for curve in self._curves(weights, errors)]
        steps = np.array([step for hull in hulls for step in itertools.pairwise(hull)], dtype=int).reshape(-1, 2)
        slopes = (errors[steps[:, 0]] - errors[steps[:, 1]]) / (weights[steps[:, 1]] - weights[steps[:, 0]])
        steps = steps[np.argsort(-slopes, kind="stable")]
        least = np.array([hull[0] for hull in hulls])
        totals = np.vstack([np.zeros(len(self.names)), np.cumsum(self._costs[steps[:, 1]] - self._costs[steps[:, 0]], axis=0)])
        totals += self._dense + self._costs[least].sum(0)
        return np.array([self._fill(share * bounds, least, steps, totals, errors, weights) for share in shares])

    def _weightings(self, bounds: Floats, share: float) -> Iterator[Floats]:
        """Ways to make one figure of every option's costs: as shares of their bounds all alike, then each more than the others.

        Where the cheapest options would not keep a share of all bounds, those that they miss weigh more.
        """
        emphasis = np.ones(len(bounds))
        for _ in range(_EMPHASISED):
            weights: Floats = (emphasis * self._costs / bounds).sum(1)
            least = [start + weights[start:end].argmin() for start, end in itertools.pairwise(self._starts)]
            over = self._dense + self._costs[least].sum(0) > share * bounds * _ROUNDING
            if not over.any():
                break
            emphasis[over] *= 1.3
        yield weights
        bounded = np.flatnonzero(np.isfinite(bounds))
        for first in bounded if len(bounded) > 1 else ():  # the others may not bind
            unlike = np.where(np.arange(len(bounds)) == first, emphasis, _LESS * emphasis)
            yield (unlike * self._costs / bounds).sum(1)

    def _curves(self, weights: Floats, errors: Floats) -> list[Indices]:
        """Every branch's options that no cheaper one beats, from the cheapest to the one of least error."""
        curves = []
        for start, end in itertools.pairwise(self._starts):
            curves.append(start + staircase(weights[start:end], errors[start:end]))
        return curves

    def _fill(self, bounds: Floats, least: Indices, steps: Indices, totals: Floats, errors: Floats, weights: Floats) -> Indices:
        """Take the steps that keep the bounds, then the single exchanges that still fit, the best per cost first."""
        over: NDArray[np.bool_] = np.any(totals > bounds * _ROUNDING, axis=1)
        if over[0]:
            raise AllocationError("the cheapest options are above a bound")
        taken = int(over.argmax()) - 1 if over.any() else len(steps)
        chosen = least.copy()
        chosen[self._branch[steps[:taken, 1]]] = steps[:taken, 1]  # later steps of a branch overwrite earlier ones
        total = totals[taken]
        while (exchange := self._exchange(chosen, total, bounds, errors, weights)) is not None:
            total = total + self._costs[exchange] - self._costs[chosen[self._branch[exchange]]]
            chosen[self._branch[exchange]] = exchange
        return chosen

    def _exchange(self, chosen: Indices, total: Floats, bounds: Floats, errors: Floats, weights: Floats) -> int | None:
        """The option that saves most error per cost in place of its branch's and still fits; None if there is none."""
        now = chosen[self._branch]
        saved = errors[now] - errors
        fits = (saved > 0) & (total + self._costs - self._costs[now] <= bounds * _ROUNDING).all(1)
        if not fits.any():
            return None
        rates = np.where(fits, saved / np.maximum(weights - weights[now], 1e-12), -np.inf)
        return int(rates.argmax())

    def _pairs(self, chosen: Indices, bounds: Floats, errors: Floats) -> Iterator[tuple[int, int]]:
        """Exchanges of two branches that save error and keep the bounds, the best first, while there are any.

        `chosen` is read again after every pair.
        """
        curves = self._curves((self._costs / bounds).sum(1), errors)
        while True:
            near = np.concatenate([_near(curve, errors, errors[now]) for curve, now in zip(curves, chosen, strict=True)])
            now = chosen[self._branch[near]]
            saved, paid = errors[now] - errors[near], self._costs[near] - self._costs[now]
            slack = bounds * _ROUNDING - self._dense - self._costs[chosen].sum(0)
            fits = (paid[:, None] + paid[None] <= slack).all(-1) & (self._branch[near][:, None] != self._branch[near])
            gains = np.where(fits, saved[:, None] + saved, 0.0)
            first, second = np.unravel_index(gains.argmax(), gains.shape)
            if gains[first, second] <= 1e-12 * errors[chosen].sum():
                return
            yield int(near[first]), int(near[second])


def knapsack_of(dense: DenseModel, measured: bool) -> Knapsack:
    """The one that a search decodes with.

    Args:
        dense: of the search.
        measured: whether over the errors of the measured profile, else over the closed-form ones.
    """
    errors = dense.profile.errors if measured else closed_form(dense.factors)
    return Knapsack(dense.space, dense.costs, errors)


def _hull(curve: Indices, weights: Floats, errors: Floats) -> list[int]:
    """Options on the lower convex hull of cost and error, of those that no cheaper one beats."""
    costs, losses = weights[curve].tolist(), errors[curve].tolist()
    kept: list[int] = []
    for index in range(len(curve)):
        while len(kept) > 1:
            a, b = kept[-2], kept[-1]
            if (losses[a] - losses[b]) * (costs[index] - costs[b]) > (losses[b] - losses[index]) * (costs[b] - costs[a]):
                break
            kept.pop()
        kept.append(index)
    return curve[kept].tolist()  # type: ignore[no-any-return]


def _near(curve: Indices, errors: Floats, error: float) -> Indices:
    """The options of a curve, of falling errors, that are next to an error."""
    place = int(np.searchsorted(-errors[curve], -error))
    return curve[max(place - _NEAR, 0) : place + _NEAR + 1]
