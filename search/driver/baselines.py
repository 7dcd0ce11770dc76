"""What every search evaluates before its sampler proposes: the dense model, warm starts, uniform allocations and recipes."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import get_args

from objectives.cost.spec import Cost
from search.budgets.parametrisation import Parametrisation
from search.config import ALLOCATED, StudyConfig
from search.driver.opening import WIDTHS_ALONE
from search.study.study import Study
from search.trial import DENSE, DENSE_TAIL, WARM_START
from spaces.errors import AllocationError
from spaces.sites import Role, Space


def enqueue_baselines(
    study: Study, parametrisation: Parametrisation, config: StudyConfig, recipe_limits: Sequence[Mapping[Cost, float]]
) -> None:
    """Propose them first; those that were tried already are not proposed again.

    Args:
        study: of the search.
        parametrisation: of its allocations.
        config: which baselines.
        recipe_limits: budgets of the recipes.
    """
    budgets = parametrisation.budgets
    study.enqueue(DENSE, budgets.space.identity())
    if config.recipe is None:
        study.enqueue(DENSE_TAIL, budgets.space.lossless())
    for target in range(len(budgets.targets)):
        if config.recipe is None:
            _enqueue_start(study, parametrisation, target)
        if "uniform" in config.recipes:
            _enqueue_uniform(study, parametrisation, config, target)
        if "random" in config.recipes:
            study.enqueue("random", budgets.random(_full(parametrisation, config, target), config.seed, target))
    for name in recipes_of(config):
        for limits in recipe_limits:
            study.enqueue_recipe(name, limits)


def recipes_of(config: StudyConfig) -> list[str]:
    """Recipes that make models of their own; the others are points of the searched space."""
    return [name for name in config.recipes if name not in ALLOCATED]


def _enqueue_start(study: Study, parametrisation: Parametrisation, target: int) -> None:
    """What the profile alone chooses, on the budget and below it: where the sampler starts. And what it would have chosen on
    the budget, had it all tokens and branches: no search is worse for having them.
    """
    low = parametrisation.budgets.lows[target]
    for share in (1.0, 0.5, 0.0):
        parameters = parametrisation.encode(target, low + share * (1 - low))
        study.enqueue(WARM_START, parametrisation.decode(parameters), parameters)
    parameters = parametrisation.encode(target, 1.0, frame=0)
    study.enqueue(WIDTHS_ALONE, parametrisation.decode(parameters), parameters)


def _enqueue_uniform(study: Study, parametrisation: Parametrisation, config: StudyConfig, target: int) -> None:
    """The same share everywhere: with every mix of operators on the budget, and in a search below it too."""
    budgets = parametrisation.budgets
    low, full = budgets.lows[target], _full(parametrisation, config, target)
    wanted = [(f"uniform{mix}", full, operators) for mix, operators in _mixes(budgets.space)]
    for share in (0.5, 0.0) if config.recipe is None else ():
        wanted.append(("uniform", low + share * (1 - low), {}))
    for label, load, operators in wanted:
        with suppress(AllocationError):  # the smallest of one mix may be above a budget that others keep
            study.enqueue(label, budgets.uniform(load, target, operators))


def _full(parametrisation: Parametrisation, config: StudyConfig, target: int) -> float:
    """The load that baselines aim at: all of the budget, or the middle of the band where there is no target."""
    return 1.0 if config.target else (parametrisation.budgets.lows[target] + 1) / 2


def _mixes(space: Space) -> Iterable[tuple[str, dict[str, str]]]:
    """Ways to use one operator per role of branch: suffix of the label, and branch -> operator."""
    offered: dict[Role, list[str]] = {role: _rivals(space, role) for role in get_args(Role)}
    mixes = [dict(zip(offered, names, strict=True)) for names in itertools.product(*offered.values())]
    for mix in mixes:
        chosen = {
            branch: mix[role]
            for branch, role in space.roles.items()
            if mix[role] in {operator.name for operator in space.rivals[branch]}
        }
        yield (f" {'+'.join(mix.values())}" if len(mixes) > 1 else ""), chosen


def _rivals(space: Space, role: Role) -> list[str]:
    branches = [branch for branch, found in space.roles.items() if found == role]
    return list(dict.fromkeys(operator.name for branch in branches for operator in space.rivals[branch])) or [""]
