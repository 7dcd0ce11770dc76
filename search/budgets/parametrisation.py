"""What samplers see of an allocation: a budget and a log-multiplier per site on the profile, or the sizes themselves.

With multipliers the sampler proposes how much of a target to use and how much more or less than its profile every site matters;
a knapsack decodes that into the allocation of least total error, so every trial meets its budget. With all multipliers at zero
that is where a search starts: what the profile alone would choose. The sizes themselves are there to be compared with.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from objectives.cost.closed_form import CostModel
from objectives.cost.spec import Cost
from search.budgets.knapsack import Indices, Knapsack
from spaces.allocation import Allocation
from spaces.errors import AllocationError
from spaces.sites import Site, Space

Floats = NDArray[np.float64]
Limits = Mapping[Cost, float]

BUDGET = "budget"
# A site may matter e^2, some seven times, more or less than its profile says.
SPAN = 2.0
# Offsets of the random allocations that searches are compared with, in log-odds of the share that a site keeps.
_OFFSET = 1.5


@dataclass(frozen=True)
class Budgets:
    """The targets of a search, and below each the band of loads that proposals aim at.

    Attributes:
        space: where allocations come from.
        costs: of this space.
        targets: of each one, cost -> bound, in the cost's unit.
        lows: of each one, the lowest load that proposals aim at; the highest is 1.
    """

    space: Space
    costs: CostModel
    targets: Sequence[Limits]
    lows: Sequence[float]

    def load(self, allocation: Allocation, target: int = 0) -> float:
        """How much of a target an allocation uses; 1 is all of it."""
        return self.costs.load(allocation, self.targets[target])

    def limits(self, target: int, load: float) -> dict[Cost, float]:
        """Bounds of a share of a target."""
        return {cost: load * limit for cost, limit in self.targets[target].items()}

    def uniform(self, load: float, target: int = 0, operators: Mapping[str, str] | None = None) -> Allocation:
        """The allocation that keeps the same share at every site.

        Args:
            load: share of the target to aim at.
            target: its index.
            operators: branch -> operator where there are rivals; the first one where it is not given.

        Raises:
            AllocationError: these operators cannot be made so small.
        """
        return self.space.decode(load, partial(self.load, target=target), operators)

    def random(self, load: float, seed: int, target: int = 0) -> Allocation:
        """An allocation with random proportions, and random operators where there are rivals."""
        rng = random.Random(seed)
        operators = {branch: rng.choice(rivals).name for branch, rivals in self.space.branches.items()}
        offsets = {site.name: rng.uniform(-_OFFSET, _OFFSET) for site in self.space.sites}
        return self.proportioned(load, operators, offsets, target)

    def proportioned(
        self, load: float, operators: Mapping[str, str], offsets: Mapping[str, float], target: int = 0
    ) -> Allocation:
        """The allocation with these proportions on a share of a target.

        Args:
            load: share of the target to aim at.
            operators: branch -> operator; where all of them together cannot be made so small, those of the smallest allocation
                are taken.
            offsets: site -> offset in log-odds of its share; 0 where it is not given.
            target: its index.
        """
        used = partial(self.load, target=target)
        try:
            return self.space.decode(load, used, operators, offsets)
        except AllocationError:
            return self.space.decode(load, used, self.space.operators(self.space.smallest(used)), offsets)


class Parametrisation(Protocol):
    """A map from sampled parameters to allocations within the band of a target."""

    @property
    def budgets(self) -> Budgets: ...

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna distributions by parameter name."""
        ...

    def decode(self, parameters: Mapping[str, Any]) -> Allocation:
        """The allocation that parameters stand for."""
        ...

    def encode(self, target: int, load: float) -> dict[str, Any]:
        """Parameters of the allocation that the profile alone chooses on a share of a target."""
        ...


class Decoded(NamedTuple):
    """What parameters stand for: multipliers, [sites], and of the allocation the sites' errors by the profile, [sites], and how
    much it uses of every target, [targets]."""

    allocation: Allocation
    multipliers: Floats
    features: Floats
    loads: Floats


@dataclass(frozen=True)
class Multipliers:
    """By budget and log-multipliers. A budget of k + b is the share b of target k (counted from 0), in (0, 1].

    Attributes:
        budgets: what is searched.
        knapsack: over the profile of its space.
    """

    budgets: Budgets
    knapsack: Knapsack
    _decoded: dict[tuple[tuple[str, Any], ...], Decoded] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        lowest, highest = self._budget(0, self.budgets.lows[0]), self._budget(len(self.budgets.targets) - 1, 1.0)
        sites = {name: FloatDistribution(-SPAN, SPAN) for name in self.knapsack.sites}
        return {BUDGET: FloatDistribution(lowest, highest), **sites}

    def decode(self, parameters: Mapping[str, Any]) -> Allocation:
        return self.decoded(parameters).allocation

    def decoded(self, parameters: Mapping[str, Any]) -> Decoded:
        """What parameters stand for; decoded once."""
        key = tuple(parameters.items())
        if key not in self._decoded:
            multipliers = {name: parameters[name] for name in self.knapsack.sites}
            allocation = self.knapsack.allocate(self.budgets.limits(*self.aim(parameters[BUDGET])), multipliers)
            self._decoded[key] = Decoded(
                allocation,
                np.array(list(multipliers.values())),
                self.knapsack.features_of(allocation),
                np.array([self.budgets.load(allocation, target) for target in range(len(self.budgets.targets))]),
            )
        return self._decoded[key]

    def encode(self, target: int, load: float) -> dict[str, Any]:
        return self.name(target, load, np.zeros(len(self.knapsack.sites)))

    def name(self, target: int, load: float, multipliers: Floats) -> dict[str, float]:
        """Parameters by name; multipliers as an array, [sites]."""
        rounded = np.round(multipliers, 4).tolist()  # as a trial is written down
        return {BUDGET: self._budget(target, load), **dict(zip(self.knapsack.sites, rounded, strict=True))}

    @staticmethod
    def _budget(target: int, load: float) -> float:
        return round(target + load, 6)

    def aim(self, budget: float) -> tuple[int, float]:
        """Target and share of it, within its band."""
        target = min(max(math.ceil(budget) - 1, 0), len(self.budgets.targets) - 1)
        return target, max(budget - target, self.budgets.lows[target])

    def choose(self, target: int, multipliers: Floats, loads: Sequence[float]) -> Indices:
        """The knapsack's options on several shares of a target, [shares, branches]."""
        return self.knapsack.choose(self.budgets.targets[target], multipliers, loads)

    def loads(self, chosen: Indices, target: int) -> Floats:
        """How much of a target options use, [..., branches] -> [...]."""
        costs, limits = self.knapsack.costs(chosen), self.budgets.targets[target]
        names = self.knapsack.names
        return np.max([costs[..., names.index(cost)] / limit for cost, limit in limits.items()], axis=0)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Sizes:
    """By the sizes themselves, each as the number of its choice; what misses the band of the first target is moved onto it.

    Attributes:
        budgets: what is searched.
        knapsack: for the start; None where nothing is proposed.
    """

    budgets: Budgets
    knapsack: Knapsack | None

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        sizes = {site.name: IntDistribution(0, len(site.choices) - 1) for site in self.budgets.space.sites}
        rivals = {
            branch: CategoricalDistribution([operator.name for operator in operators])
            for branch, operators in self.budgets.space.branches.items()
            if len(operators) > 1
        }
        return {**rivals, **sizes}

    def decode(self, parameters: Mapping[str, Any]) -> Allocation:
        operators = {branch: rivals[0].name for branch, rivals in self.budgets.space.branches.items()}
        operators |= {branch: parameters[branch] for branch in operators if branch in parameters}
        sites = [
            site
            for branch, rivals in self.budgets.space.branches.items()
            for operator in rivals
            if operator.name == operators[branch]
            for site in operator.sites
        ]
        sizes = {site.name: site.choices[parameters[site.name]] for site in sites}
        allocation = self.budgets.space.identity().replace(sizes)
        load, low = self.budgets.load(allocation), self.budgets.lows[0]
        if low <= load <= 1:
            return allocation
        offsets = {site.name: _log_odds(site, sizes[site.name]) for site in sites}
        return self.budgets.proportioned(min(max(load, low), 1.0), operators, offsets)

    def encode(self, target: int, load: float) -> dict[str, Any]:
        assert self.knapsack is not None
        allocation = self.knapsack.allocate(self.budgets.limits(target, load))
        sizes = {site.name: site.choices.index(allocation[site.name]) for site in self.budgets.space.sites}
        rivals = self.budgets.space.operators(allocation)
        return {name: rivals.get(name, sizes.get(name)) for name in self.distributions}


def parametrise(name: str, budgets: Budgets, knapsack: Knapsack | None) -> Parametrisation:
    """The parametrisation called `name`; without a knapsack one that can be written down, but not proposed for."""
    return Multipliers(budgets, knapsack) if name == "multipliers" and knapsack else Sizes(budgets, knapsack)


def _log_odds(site: Site, size: int) -> float:
    share = min(max(site.share(size), 1e-3), 1 - 1e-3)
    return math.log(share / (1 - share))
