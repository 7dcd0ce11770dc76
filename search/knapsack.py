"""The allocation of least total error on a budget: a multiple-choice knapsack over the branches of a model.

Every branch offers options, one per combination of the sizes of one of its operators, each with a cost and an error; one option
of every branch is taken. Errors are those of `Factors.error`, which are in one unit for all sites and taken to add up.
Solved by the Lagrangian relaxation: on the lower convex hull of a branch's options the error saved per cost falls from step to
step, so taking all branches' steps in the order of that slope gives the optimum of every budget that it passes. What the last
step leaves of the budget is then filled, with the best affordable exchange at a time.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from objectives.cost import Cost, CostModel
from spaces.allocation import Allocation
from spaces.errors import AllocationError
from spaces.factors import Factors
from spaces.sites import Space

Errors = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Option:
    """One way to make a branch smaller, or to leave it.

    Attributes:
        sizes: site name -> size, of the sites that it sets.
        cost: what it costs more than nothing, as a share of the budget.
        error: its closed-form error.
    """

    sizes: tuple[tuple[str, int], ...]
    cost: float
    error: float


def errors_of(factors: Factors) -> dict[str, dict[int, float]]:
    """Site name -> size -> closed-form error."""
    return {site.name: factors.error(site) for site in factors.space.sites}


def allocate(space: Space, costs: CostModel, limits: Mapping[Cost, float], errors: Errors) -> Allocation:
    """The allocation of least total error whose costs keep `limits`.

    Optimal for one limit up to the last step of the hull; several limits are weighed alike, each as a share of its bound.

    Args:
        space: what may be chosen; rival operators of a branch compete.
        costs: of this space.
        limits: upper bounds, in MACs or parameters.
        errors: site name -> size -> error.

    Raises:
        AllocationError: the smallest allocation is above a limit.
    """
    options = branch_options(space, costs, limits, errors)
    hulls = [_hull(choices) for choices in options]
    chosen = [hull[0] for hull in hulls]

    def allocation(options: list[Option]) -> Allocation:
        return space.identity().replace({name: size for option in options for name, size in option.sizes})

    def fits(options: list[Option]) -> bool:
        return costs.load(allocation(options), limits) <= 1

    if not fits(chosen):
        raise AllocationError(f"no allocation of space {space.name!r} keeps the budget")
    steps = [
        ((before.error - after.error) / (after.cost - before.cost), branch, after)
        for branch, hull in enumerate(hulls)
        for before, after in itertools.pairwise(hull)
    ]
    for _, branch, option in sorted(steps, key=lambda step: -step[0]):
        taken = [*chosen[:branch], option, *chosen[branch + 1 :]]
        if not fits(taken):
            break
        chosen = taken
    while (better := _best_exchange(chosen, options, fits)) is not None:
        chosen = better
    return allocation(chosen)


def branch_options(space: Space, costs: CostModel, limits: Mapping[Cost, float], errors: Errors) -> list[list[Option]]:
    """Every branch's options: all combinations of the sizes of one operator's sites, the others dense."""
    branches: dict[str, list[Option]] = {branch: [] for branch in space.branches}
    for operator, count in costs.operators:
        whole = count({site.part: site.dense for site in operator.sites})
        for sizes in itertools.product(*(site.choices for site in operator.sites)):
            macs, params = count({site.part: size for site, size in zip(operator.sites, sizes, strict=True)})
            if (macs, params) > whole:
                continue
            kept: dict[Cost, int] = {"macs": macs, "params": params}
            names = tuple(site.name for site in operator.sites)
            branches[operator.sites[0].branch].append(
                Option(
                    sizes=tuple(zip(names, sizes, strict=True)),
                    cost=sum(kept[cost] / limit for cost, limit in limits.items()),
                    error=sum(errors[name][size] for name, size in zip(names, sizes, strict=True)),
                )
            )
    return list(branches.values())


def _hull(options: list[Option]) -> list[Option]:
    """Options on the lower convex hull of cost and error, from the cheapest to the one of least error."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda entry: (entry.cost, entry.error)):
        if hull and option.error >= hull[-1].error:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _slope(a: Option, b: Option) -> float:
    return (a.error - b.error) / (b.cost - a.cost)


def _best_exchange(
    chosen: list[Option], options: list[list[Option]], fits: Callable[[list[Option]], bool]
) -> list[Option] | None:
    """`chosen` with the one other option that saves most error per cost and still fits; None if there is none."""
    found = [
        ((now.error - option.error) / max(option.cost - now.cost, 1e-12), branch, option)
        for branch, (now, choices) in enumerate(zip(chosen, options, strict=True))
        for option in choices
        if option.error < now.error
    ]
    for _, branch, option in sorted(found, key=lambda entry: -entry[0]):
        taken = [*chosen[:branch], option, *chosen[branch + 1 :]]
        if fits(taken):
            return taken
    return None
