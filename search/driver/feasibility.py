"""What a search may ask of its model: whether costs can be counted, targets reached and recipes kept, before it is paid for."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from objectives.cost.check import check_count
from objectives.cost.closed_form import CostModel, cost_model
from objectives.cost.spec import MAIN
from objectives.dense_model import DenseModel
from objectives.recipes.registry import RECIPES, check_reach, recipe_of
from search.budgets.parametrisation import Budgets, Limits
from search.budgets.reach import check_jointly, reach_of, recipe_limits
from search.budgets.targets import Budget, Reach, budgets_of
from search.config import SearchConfig, StudyConfig
from search.driver.baselines import recipes_of
from search.driver.observer import Observer
from search.fidelity.judge import tell_found
from search.run.continuation import check_same_latencies, check_same_model
from spaces.models.create import weights_of
from spaces.sites import Space
from spaces.vit import describe


@dataclass(frozen=True, kw_only=True)
class Feasible:
    """What the targets mean in figures, as far as costs are known.

    Attributes:
        reach: of every cost, what the smallest allocation and the dense model have.
        targets: that were given, without those on costs that are measured later.
        limits: of every budget, its bounds; one budget, the dense model's cost, where there is no target.
    """

    reach: Reach
    targets: tuple[Budget, ...]
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


def accepted(config: SearchConfig, directory: Path, dense: DenseModel, observer: Observer) -> Feasible:
    """Tell what was read; refuse another model's run and what is not feasible, before factors are computed.

    Raises:
        CompressionError: the run has another model or has lost its latencies, or `check_feasible` refuses.
    """
    tell_found(dense.data, observer.say, observer.notice)
    check_same_model(directory, dense.fingerprint)
    observer.say(f"weights: {weights_of(dense.model)}")
    check_same_latencies(directory, config, dense.fingerprint)
    return check_feasible(config.study, dense)


def check_feasible(study: StudyConfig, dense: DenseModel) -> Feasible:
    """Refuse what no search can do, by the costs that are counted without measuring.

    Raises:
        CompressionError: costs cannot be counted, or a target or the budget of a recipe is out of reach.
    """
    check_count(dense.model, dense.counted)
    feasible = settle(study, dense, dense.counted)
    for name in recipes_of(study):
        for limits in recipe_limits(feasible.targets, dense.counted):
            check_reach(dense, name, limits)
    return feasible


def settle(study: StudyConfig, dense: DenseModel, costs: CostModel) -> Feasible:
    """What the targets of a search mean.

    Args:
        study: with the targets.
        dense: with model and space.
        costs: that are known now.

    Raises:
        TargetError: one is malformed or out of reach.
    """
    space = dense.space
    later = {"latency"} - set(costs.names) if study.times else set()
    if study.recipe in RECIPES:  # what a recipe reaches alone is not bounded by the space of searches
        space = describe(dense.model, recipe_of(study.recipe).space, study.multiple)
        costs = cost_model(dense.model, space)
    reach = reach_of(costs, space)
    targets = budgets_of(study.targets, reach, later)
    check_jointly(targets, costs, space)
    return Feasible(reach=reach, targets=targets, limits=[budget.limits for budget in targets] or [_whole(study, costs)])


def _whole(study: StudyConfig, costs: CostModel) -> Limits:
    """The budget of a search without targets: the dense model's MACs, or what it has of the first cost that is an objective."""
    cost = MAIN.name if MAIN.name in study.minimised else study.minimised[0]
    return {cost: costs.dense.get(cost, 1.0)}
