"""What the sampler sees: a budget, one offset per site, and the operator of every branch that has rivals.

The sampler never proposes sizes. It proposes how much of the budget to use and which sites get more than others; the
space decodes that into sizes that meet the budget, so that every trial lies in the wanted band of cost.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from spaces.allocation import Allocation
from spaces.sites import Space

BUDGET = "budget"
# In log-odds of the share that a site keeps: +-1.5 takes a share of 50 % to 18 % or 82 %.
_OFFSET = 1.5


@dataclass(frozen=True)
class Parametrisation:
    """Map from sampled parameters to allocations.

    Attributes:
        space: where allocations come from.
        load: how much of the budget an allocation uses (1: all of it).
        band: lowest and highest load that proposals aim at.
    """

    space: Space
    load: Callable[[Allocation], float]
    band: tuple[float, float]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna distributions by parameter name."""
        found: dict[str, BaseDistribution] = {BUDGET: FloatDistribution(*self.band)}
        for branch, rivals in self.space.branches.items():
            if len(rivals) > 1:
                found[branch] = CategoricalDistribution([operator.name for operator in rivals])
        found.update({site.name: FloatDistribution(-_OFFSET, _OFFSET) for site in self.space.sites})
        return found

    def decode(self, parameters: Mapping[str, float | str]) -> Allocation:
        """The allocation that parameters stand for.

        Operators that cannot meet the budget give way to those of the smallest allocation, branch by branch.
        """
        operators = {branch: str(parameters[branch]) for branch in self.space.branches if branch in parameters}
        offsets = {site.name: float(parameters[site.name]) for site in self.space.sites}
        budget = float(parameters[BUDGET])
        return self.space.decode(budget, self.load, self._affordable(operators, budget), offsets)

    def uniform(self, budget: float, operators: Mapping[str, str] | None = None) -> dict[str, float | str]:
        """Parameters of the allocation that keeps the same share at every site.

        Args:
            budget: the load to aim at, within the band.
            operators: branch -> operator where there are rivals; the first one where it is not given.
        """
        chosen = {
            branch: (operators or {}).get(branch, rivals[0].name)
            for branch, rivals in self.space.branches.items()
            if len(rivals) > 1
        }
        return {BUDGET: budget, **chosen, **{site.name: 0.0 for site in self.space.sites}}

    def random(self, budget: float, seed: int) -> dict[str, float | str]:
        """Parameters of an allocation with random proportions, drawn as the sampler's first ones are."""
        rng, parameters = random.Random(seed), self.uniform(budget)
        for branch, rivals in self.space.branches.items():
            if len(rivals) > 1:
                parameters[branch] = rng.choice(rivals).name
        return {**parameters, **{site.name: rng.uniform(-_OFFSET, _OFFSET) for site in self.space.sites}}

    def _affordable(self, operators: dict[str, str], budget: float) -> dict[str, str]:
        """`operators`, with as few of them replaced as it takes to get below the budget."""
        if not operators:
            return operators
        cheapest = self.space.operators(self.space.smallest(self.load))
        chosen = dict(operators)
        for branch, operator in operators.items():
            if self.load(self._smallest_with(chosen)) <= budget:
                break
            if operator != cheapest[branch]:
                chosen[branch] = cheapest[branch]
        return chosen

    def _smallest_with(self, operators: Mapping[str, str]) -> Allocation:
        sizes = {
            site.name: site.choices[0]
            for branch, rivals in self.space.branches.items()
            for operator in rivals
            if operator.name == operators.get(branch, rivals[0].name)
            for site in operator.sites
        }
        return self.space.identity().replace(sizes)
