"""What a search may ask of its model: whether costs can be counted, targets reached and recipes kept, before it is paid for."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from objectives.cost.check import check_count
from objectives.cost.closed_form import COSTS, Cost, CostModel, cost_model
from objectives.evaluator import Evaluator
from objectives.recipes.registry import RECIPES, check_reach, recipe_of
from search.budgets.parametrisation import Budgets, Limits
from search.budgets.targets import (
    Reach,
    Target,
    budgets_of,
    check_jointly,
    check_recipes,
    parse_targets,
    reach_of,
    recipe_budgets,
)
from search.config import StudyConfig
from search.driver.baselines import recipes_of
from spaces.sites import Space
from spaces.vit import describe

_COLUMNS = {"error": "error", "flops": "macs", "params": "params", "latency": "latency"}


@dataclass(frozen=True, kw_only=True)
class Feasible:
    """What the targets mean in figures, as far as costs are known.

    Attributes:
        reach: of every cost, what the smallest allocation and the dense model have.
        targets: that were given, without those on costs that are measured later.
        limits: of every budget, its bounds; one budget, the dense model's cost, where there is no target.
    """

    reach: Reach
    targets: tuple[Target, ...]
    limits: Sequence[Limits]

    def budgets(self, space: Space, costs: CostModel, band: float) -> Budgets:
        """What proposals aim at.

        Args:
            space: that is searched.
            costs: of its allocations.
            band: share of a target from which on it is aimed at. Where there is no target: all that the space reaches.
        """
        return Budgets(space, costs, self.limits, [self._low(space, costs, limits, band) for limits in self.limits])

    def _low(self, space: Space, costs: CostModel, limits: Limits, band: float) -> float:
        load = partial(costs.load, limits=limits)
        least = load(space.smallest(load))
        return min(max(least, band), 1.0) if self.targets else least


def columns_of(study: StudyConfig) -> tuple[str, ...]:
    """Fields of `Score` that are minimised; the error comes first, since the sampler learns from the first one."""
    return tuple(_COLUMNS[name] for name in sorted(study.objectives, key=lambda name: name != "error"))


def check_feasible(study: StudyConfig, evaluator: Evaluator) -> Feasible:
    """Refuse what no search can do, by the costs that are counted without measuring.

    Raises:
        CompressionError: costs cannot be counted, or a target or the budget of a recipe is out of reach.
    """
    check_count(evaluator.model, evaluator.counted)
    feasible = settle(study, evaluator, evaluator.counted)
    check_recipes(recipes_of(study), study.target)
    for name in recipes_of(study):
        for limits in recipe_budgets(feasible.targets, evaluator.counted):
            check_reach(evaluator, name, limits)
    return feasible


def settle(study: StudyConfig, evaluator: Evaluator, costs: CostModel) -> Feasible:
    """What the targets of a search mean.

    Args:
        study: with the targets.
        evaluator: with model and space.
        costs: that are known now.

    Raises:
        TargetError: one is malformed or out of reach.
    """
    space = evaluator.space
    later = set(COSTS) - set(costs.names) if study.times else set()
    if study.recipe in RECIPES:  # what a recipe reaches alone is not bounded by the space of searches
        space = describe(evaluator.model, recipe_of(study.recipe).space, study.multiple)
        costs = cost_model(evaluator.model, space)
        later = {"latency"}  # it keeps no bound on it
    reach = reach_of(costs, space)
    targets = parse_targets(study.target, reach, later)
    check_jointly(targets, costs, space)
    return Feasible(reach=reach, targets=targets, limits=budgets_of(targets) or [_whole(study, costs)])


def _whole(study: StudyConfig, costs: CostModel) -> Limits:
    """The budget of a search without targets: the dense model's MACs, or what it has of the first cost that is an objective."""
    costly = [name for name in study.objectives if name != "error"]
    cost: Cost = _COLUMNS["flops" if "flops" in costly else costly[0]]  # type: ignore[assignment]
    return {cost: costs.dense.get(cost, 1.0)}
