"""What samplers see of an allocation: a budget and a log-multiplier per site on the profile, or the sizes themselves.

With multipliers the sampler proposes how much of a target to use and how much more or less than its profile every site matters;
a knapsack decodes that into the allocation of least total error, so every trial meets its budget. With all multipliers at zero
that is where a search starts: what the profile alone would choose. The sizes themselves are there to be compared with.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from objectives.cost.closed_form import CostModel
from objectives.cost.spec import Cost
from search.budgets.decoded import Decoded, DecodedRows
from search.budgets.knapsack import Knapsack
from search.budgets.options import Floats, Indices, width_sites
from search.budgets.outline import Outline, band, outline_of
from spaces.allocation import Allocation
from spaces.errors import AllocationError
from spaces.sites import DROP, Site, Space

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
        operators = {branch: rng.choice(rivals).name for branch, rivals in self.space.rivals.items()}
        offsets = {site.name: rng.uniform(-_OFFSET, _OFFSET) for site in width_sites(self.space)}
        return self.proportioned(load, operators, offsets, target)

    def proportioned(
        self,
        load: float,
        operators: Mapping[str, str],
        offsets: Mapping[str, float],
        target: int = 0,
        base: Allocation | None = None,
    ) -> Allocation:
        """The allocation with these proportions on a share of a target.

        Args:
            load: share of the target to aim at.
            operators: branch -> operator; where all of them together cannot be made so small, those of the smallest allocation
                are taken.
            offsets: site -> offset in log-odds of its share; 0 where it is not given.
            target: its index.
            base: whose tokens and branches that are left out are kept; by default tokens lose what is free.
        """
        used = partial(self.load, target=target)
        try:
            return self.space.decode(load, used, operators, offsets, base)
        except AllocationError:
            return self.space.decode(load, used, self.space.operators(self.space.smallest(used)), offsets, base)


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

    def encode(self, target: int, load: float, frame: int | None = None) -> dict[str, Any]:
        """Parameters of what the profile alone chooses on a share of a target; inside a frame, where one is given."""
        ...


@dataclass(frozen=True)
class Multipliers:
    """By budget, log-multipliers and a frame. A budget of k + b is the share b of target k (counted from 0), in (0, 1].

    Attributes:
        budgets: what is searched.
        knapsack: over the profile of its space.
    """

    budgets: Budgets
    knapsack: Knapsack
    _rows: DecodedRows = field(default_factory=DecodedRows, repr=False, compare=False)
    _outlines: dict[int, Outline] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        lowest, highest = self._budget(0, self.budgets.lows[0]), self._budget(len(self.budgets.targets) - 1, 1.0)
        sites = {name: FloatDistribution(-SPAN, SPAN) for name in self.knapsack.sites}
        return {BUDGET: FloatDistribution(lowest, highest), **sites, **self.knapsack.frames.distributions}

    def decode(self, parameters: Mapping[str, Any]) -> Allocation:
        return self.allocations([parameters])[0]

    def allocations(self, parameters: Sequence[Mapping[str, Any]]) -> tuple[Allocation, ...]:
        """The allocations that several parameters stand for."""
        found = self.decoded(parameters)
        return tuple(map(self.knapsack.allocation, found.chosen, found.frames.tolist()))

    def decoded(self, parameters: Sequence[Mapping[str, Any]]) -> Decoded:
        """What several parameters stand for, at least one; each is decoded once, and by itself."""
        keys = [(self.knapsack.frames.of(entry), *self._values(entry)) for entry in parameters]
        places = self._rows.places(keys)
        if None in places:
            missing = list(dict.fromkeys(key for key, place in zip(keys, places, strict=True) if place is None))
            self._rows.add(missing, self._decode(missing))
            places = self._rows.places(keys)
        return self._rows.take(places)

    @cached_property
    def _values(self) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
        return itemgetter(BUDGET, *self.knapsack.sites)

    def _decode(self, keys: Sequence[tuple[Any, ...]]) -> Decoded:
        frames, aims = np.array([frame for frame, *_ in keys]), [self.aim(budget) for _, budget, *_ in keys]
        multipliers = np.array([values for _, _, *values in keys])
        targets, shares = np.array([target for target, _ in aims]), np.array([share for _, share in aims])
        chosen = np.empty((len(keys), self.knapsack.branches), dtype=int)
        for target in np.unique(targets):
            rows, limits = np.flatnonzero(targets == target), self.budgets.targets[target]
            if len(self.knapsack.frames) > 1:  # a frame that cannot keep a budget gives way to the first, which can
                frames[rows] = np.where(shares[rows] < self.outline(int(target)).least[frames[rows]], 0, frames[rows])
            chosen[rows] = self.knapsack.solve(limits, multipliers[rows], shares[rows], frames[rows])
        loads = np.stack([self.loads(chosen, frames, target) for target in range(len(self.budgets.targets))], axis=1)
        return Decoded(chosen, frames, multipliers, self.knapsack.features(chosen, frames), loads)

    def encode(self, target: int, load: float, frame: int | None = None) -> dict[str, Any]:
        chosen = self.outline(target).best(load) if frame is None else frame
        return self.name(target, load, np.zeros(len(self.knapsack.sites)), chosen)

    def name(self, target: int, load: float, multipliers: Floats, frame: int = 0) -> dict[str, Any]:
        """Parameters by name; multipliers as an array, [sites]."""
        rounded = np.round(multipliers, 4).tolist()  # as a trial is written down
        sites = dict(zip(self.knapsack.sites, rounded, strict=True))
        return {BUDGET: self._budget(target, load), **sites, **self.knapsack.frames.named(frame)}

    @staticmethod
    def _budget(target: int, load: float) -> float:
        return round(target + load, 6)

    def aim(self, budget: float) -> tuple[int, float]:
        """Target and share of it, within its band."""
        target = min(max(math.ceil(budget) - 1, 0), len(self.budgets.targets) - 1)
        return target, max(budget - target, self.budgets.lows[target])

    def outline(self, target: int) -> Outline:
        """What the profile alone expects of every frame on a target."""
        if target not in self._outlines:
            shares = band(self.budgets.lows[target])
            self._outlines[target] = outline_of(self.knapsack, self.budgets.targets[target], shares)
        return self._outlines[target]

    def choose(self, target: int, multipliers: Floats, loads: Floats, frames: Indices | None = None) -> Indices:
        """The knapsack's options on several shares of a target.

        Args:
            target: its index.
            multipliers: [rows, sites].
            loads: shares for each row, [rows, shares].
            frames: of the rows, [rows]; frame 0 by default.

        Returns:
            [rows, shares, branches].
        """
        return self.knapsack.choose(self.budgets.targets[target], multipliers, loads, frames)

    def loads(self, chosen: Indices, frames: Indices | None, target: int) -> Floats:
        """How much of a target options use, [rows, branches] and [rows] -> [rows]."""
        costs, limits = self.knapsack.costs(chosen, frames), self.budgets.targets[target]
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
        sizes = {site.name: IntDistribution(0, len(site.choices) - 1) for site in width_sites(self.budgets.space)}
        rivals = {
            branch: CategoricalDistribution([operator.name for operator in operators])
            for branch, operators in self.budgets.space.rivals.items()
            if len(operators) > 1
        }
        return {**rivals, **sizes, **(self.knapsack.frames.distributions if self.knapsack else {})}

    def decode(self, parameters: Mapping[str, Any]) -> Allocation:
        operators = {branch: rivals[0].name for branch, rivals in self.budgets.space.rivals.items()}
        operators |= {branch: parameters[branch] for branch in operators if branch in parameters}
        base = self._base(parameters)
        dropped = {branch for branch, operator in self.budgets.space.moved(base) if operator.name == DROP}
        sites = [
            site
            for branch, rivals in self.budgets.space.rivals.items()
            for operator in rivals
            if operator.name == operators[branch] and branch not in dropped
            for site in operator.sites
        ]
        sizes = {site.name: site.choices[parameters[site.name]] for site in sites}
        allocation = base.replace(sizes)
        load, low = self.budgets.load(allocation), self.budgets.lows[0]
        if low <= load <= 1:
            return allocation
        offsets = {site.name: _log_odds(site, sizes[site.name]) for site in sites}
        return self.budgets.proportioned(min(max(load, low), 1.0), operators, offsets, base=base)

    def _base(self, parameters: Mapping[str, Any]) -> Allocation:
        """What the frame of some parameters keeps, all widths dense."""
        space = self.budgets.space
        return (
            space.lossless() if self.knapsack is None else self.knapsack.frames.base(space, self.knapsack.frames.of(parameters))
        )

    def encode(self, target: int, load: float, frame: int | None = None) -> dict[str, Any]:
        assert self.knapsack is not None
        if frame is None:
            frame = outline_of(self.knapsack, self.budgets.targets[target], band(self.budgets.lows[target])).best(load)
        allocation = self.knapsack.allocate(self.budgets.limits(target, load), frame=frame)
        sizes = {site.name: site.choices.index(allocation[site.name]) for site in width_sites(self.budgets.space)}
        rivals = {branch: name for branch, name in self.budgets.space.operators(allocation).items() if name != DROP}
        first = {branch: operators[0].name for branch, operators in self.budgets.space.rivals.items()}
        found = {**first, **rivals, **sizes, **self.knapsack.frames.named(frame)}
        return {name: found[name] for name in self.distributions}


def parametrise(name: str, budgets: Budgets, knapsack: Knapsack | None) -> Parametrisation:
    """The parametrisation called `name`; without a knapsack one that can be written down, but not proposed for."""
    return Multipliers(budgets, knapsack) if name == "multipliers" and knapsack else Sizes(budgets, knapsack)


def _log_odds(site: Site, size: int) -> float:
    share = min(max(site.share(size), 1e-3), 1 - 1e-3)
    return math.log(share / (1 - share))
