"""What the sampler sees: a budget, and how much more or less than its profile says every site matters.

The sampler never proposes sizes. It proposes how much of the budget to use and a log-multiplier per site on the errors of
the sensitivity profile; a knapsack decodes that into the allocation of least total error, so that every trial meets its
budget. With all multipliers at zero that is where a search starts: what the calibration images alone would choose.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from optuna.distributions import BaseDistribution, FloatDistribution

from objectives.cost import Cost, CostModel
from search.knapsack import Knapsack
from spaces.allocation import Allocation
from spaces.sites import Space

BUDGET = "budget"
# A site may matter e^2, some seven times, more or less than its profile says.
_SPAN = 2.0
# Offsets of the random allocations that searches are compared with, in log-odds of the share that a site keeps.
_OFFSET = 1.5


@dataclass(frozen=True)
class Parametrisation:
    """Map from sampled parameters to allocations.

    Attributes:
        space: where allocations come from.
        costs: of this space.
        limits: the budget: cost -> bound, in MACs or parameters.
        band: lowest and highest share of the budget that proposals aim at.
        knapsack: over this space; None where nothing is to be sampled.
    """

    space: Space
    costs: CostModel
    limits: Mapping[Cost, float]
    band: tuple[float, float]
    knapsack: Knapsack | None = None

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna distributions by parameter name."""
        multipliers = {site.name: FloatDistribution(-_SPAN, _SPAN) for site in self.space.sites}
        return {BUDGET: FloatDistribution(*self.band), **multipliers}

    def load(self, allocation: Allocation) -> float:
        """How much of the budget an allocation uses; 1 is all of it."""
        return self.costs.load(allocation, self.limits)

    def decode(self, parameters: Mapping[str, float]) -> Allocation:
        """The allocation that parameters stand for."""
        assert self.knapsack is not None
        limits = {cost: parameters[BUDGET] * limit for cost, limit in self.limits.items()}
        return self.knapsack.allocate(limits, {site.name: parameters[site.name] for site in self.space.sites})

    def start(self, budget: float) -> dict[str, float]:
        """Parameters of the allocation that the profile's errors choose on this share of the budget."""
        return {BUDGET: budget, **{site.name: 0.0 for site in self.space.sites}}

    def uniform(self, budget: float, operators: Mapping[str, str] | None = None) -> Allocation:
        """The allocation that keeps the same share at every site.

        Args:
            budget: share of the budget to aim at.
            operators: branch -> operator where there are rivals; the first one where it is not given.
        """
        return self.space.decode(budget, self.load, operators)

    def random(self, budget: float, seed: int) -> Allocation:
        """An allocation with random proportions, and random operators where there are rivals."""
        rng = random.Random(seed)
        operators = {branch: rng.choice(rivals).name for branch, rivals in self.space.branches.items()}
        offsets = {site.name: rng.uniform(-_OFFSET, _OFFSET) for site in self.space.sites}
        return self.space.decode(budget, self.load, operators, offsets)
