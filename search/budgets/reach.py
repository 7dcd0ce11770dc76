"""What a space can reach, and whether it reaches the budgets: of a search, and of its recipes."""

from collections.abc import Sequence
from functools import partial

from objectives.cost.closed_form import CostModel
from objectives.cost.spec import COSTS, MAIN, Cost
from search.budgets.targets import Budget, Reach
from spaces.errors import TargetError
from spaces.sites import Space


def reach_of(costs: CostModel, space: Space) -> Reach:
    """Cost -> (smallest allocation's, dense model's)."""
    least = {cost: space.smallest(partial(costs.count, cost=cost)) for cost in costs.names}
    return {cost: (costs.count(least[cost], cost), costs.dense[cost]) for cost in costs.names}


def check_jointly(budgets: Sequence[Budget], costs: CostModel, space: Space) -> None:
    """Raise unless one allocation keeps all bounds of a budget at once.

    Raises:
        TargetError: there is none.
    """
    for budget in budgets:
        load = partial(costs.load, limits=budget.limits)
        if load(space.smallest(load)) > 1:
            raise TargetError(f"no allocation keeps {budget.text} at once in space {space.name!r}")


def recipe_limits(budgets: Sequence[Budget], costs: CostModel) -> list[dict[Cost, float]]:
    """Of every budget, what recipes can keep: its bounds on counted costs. Half of the main cost where there is no budget."""
    if not budgets:
        return [{MAIN.name: costs.dense[MAIN.name] / 2}]
    counted = [{cost: limit for cost, limit in budget.limits.items() if not COSTS[cost].is_measured} for budget in budgets]
    return [limits for limits in counted if limits]
