"""Site and Space: what can be made smaller, to which sizes, and how a budget becomes an allocation."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from spaces.allocation import Allocation
from spaces.errors import AllocationError

SpaceName = Literal["contract", "heads", "hybrid", "low-rank", "full"]


Kind = Literal["query_key", "value_output", "heads", "ffn_hidden", "rank", "rows", "inputs"]

# Keep ratios are swept on the log-odds scale; beyond ±40 every site is at an end of its range.
LEVELS = 40.0
_BISECTIONS = 40


@dataclass(frozen=True, kw_only=True)
class Site:
    """A place in the model with one size to choose.

    Attributes:
        name: dotted path, e.g. ``blocks.0.attn.qk`` or ``blocks.3.mlp.hidden``.
        branch: the residual branch it belongs to, e.g. ``blocks.0.attn``.
        kind: what the size counts: width per head (query_key, value_output), heads, FFN neurons, the rank of a linear, its
            rows that stay beside a low-rank part (rows), or its inputs.
        choices: ascending sizes; the last one is the dense size and leaves the model as it is.
        linear: [out_features, in_features] of the linear of a rank or rows site; None for the others.
    """

    name: str
    branch: str
    kind: Kind
    choices: tuple[int, ...]
    linear: tuple[int, int] | None = None

    @property
    def dense(self) -> int:
        """The size that keeps everything."""
        return self.choices[-1]

    @property
    def part(self) -> str:
        """The last part of the name: what the site is called within its branch."""
        return self.name.rpartition(".")[2]

    @property
    def place(self) -> tuple[str, str]:
        """Row and column in a table of all sites: block 3 and ``attn.qk`` for ``blocks.3.attn.qk``."""
        match = re.fullmatch(r"(?:.*\.)?blocks\.(\d+)\.(.+)", self.name)
        return (match[1], match[2]) if match else (self.branch, self.part)

    def share(self, size: int) -> float:
        """Share of the site's own dense weights that `size` keeps, in (0, 1]."""
        if size == self.dense or self.linear is None or self.kind != "rank":
            return size / self.dense
        rows, columns = self.linear
        return size * (rows + columns) / (rows * columns)

    def nearest(self, share: float) -> int:
        """The choice whose share is nearest to `share`; the smaller of two equally near ones."""
        return min(self.choices, key=lambda size: (abs(self.share(size) - share), size))

    def larger(self, size: int) -> int | None:
        """The next larger choice, or None at the dense size."""
        return next((choice for choice in self.choices if choice > size), None)


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One way to make a branch smaller: a name (``contract``, ``low-rank``, ``neurons``) and the sites that it moves."""

    name: str
    sites: tuple[Site, ...]

    @property
    def dense_sizes(self) -> dict[str, int]:
        """Dense sizes of its sites by the part of the branch that they are called."""
        return {site.part: site.dense for site in self.sites}

    def moves(self, allocation: Allocation) -> bool:
        """Whether `allocation` makes one of its sites smaller."""
        return any(allocation[site.name] != site.dense for site in self.sites)

    def sizes(self, allocation: Allocation) -> dict[str, int]:
        """Sizes of its sites by the part of the branch that they are called."""
        return {site.part: allocation[site.name] for site in self.sites}


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A place that is not offered, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Space:
    """Every allocation that one model may get.

    A branch may have rival operators (space ``full``); an allocation moves the sites of at most one of them, and
    leaves the other sites of the branch at their dense size.

    Attributes:
        name: contract, hybrid, low-rank or full.
        branches: branch path -> its rival operators, in model order.
        skipped: what is not offered, with the reason.
    """

    name: str
    branches: Mapping[str, tuple[Operator, ...]]
    skipped: tuple[Skipped, ...] = ()

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites, in model order."""
        return tuple(site for rivals in self.branches.values() for operator in rivals for site in operator.sites)

    def identity(self) -> Allocation:
        """The allocation that keeps everything."""
        return Allocation({site.name: site.dense for site in self.sites})

    def operators(self, allocation: Allocation) -> dict[str, str]:
        """Branch -> name of the operator that `allocation` uses there; the first one where it keeps all."""
        return {branch: self._operator_of(rivals, allocation).name for branch, rivals in self.branches.items()}

    def smallest(self, load: Callable[[Allocation], float]) -> Allocation:
        """The allocation of the smallest `load`; the cheapest of rival operators and of the dense branch, branch by branch."""
        allocation = self.identity()
        for rivals in self.branches.values():
            ends = [allocation.replace({site.name: site.choices[0] for site in operator.sites}) for operator in rivals]
            allocation = min((*ends, allocation), key=load)
        return allocation

    def validate(self, allocation: Allocation) -> None:
        """Raise unless `allocation` is one that this space offers.

        Raises:
            AllocationError: a site is missing, unknown, of a size that is not offered, or moved by two operators.
        """
        sites = {site.name: site for site in self.sites}
        for name in sorted(set(allocation) ^ set(sites)):
            problem = "unknown site" if name in allocation else "no size for site"
            raise AllocationError(f"{problem} {name!r}: space {self.name!r} has {', '.join(sites)}")
        for name, size in allocation.items():
            if size not in sites[name].choices:
                raise AllocationError(f"{name} cannot be {size}: choose one of {', '.join(map(str, sites[name].choices))}")
        for branch, rivals in self.branches.items():
            moved = [operator.name for operator in rivals if operator.moves(allocation)]
            if len(moved) > 1:
                raise AllocationError(f"{branch} is made smaller by {' and '.join(moved)} at once: choose one of them")

    def decode(
        self,
        limit: float,
        load: Callable[[Allocation], float],
        operators: Mapping[str, str] | None = None,
        offsets: Mapping[str, float] | None = None,
    ) -> Allocation:
        """The allocation with the wanted proportions whose `load` is as near below `limit` as the sizes allow.

        Site i keeps the share sigmoid(offset_i + level), rounded to a size that it offers. The common level is found
        by bisection; what rounding leaves of the budget is then given, a step at a time, to the sites that rounding
        cut most. With no offsets this is the uniform allocation: the same share everywhere. Heads stay whole where the
        budget lets them: fewer heads that are narrower too would lose twice.

        Args:
            limit: upper bound on `load`.
            load: cost of an allocation; grows with every size.
            operators: branch -> operator to use there; the first one where it is not given.
            offsets: site -> offset in log-odds of its share; 0 where it is not given.

        Raises:
            AllocationError: the smallest allocation with these operators is above `limit`.
        """
        offsets = offsets or {}

        def wanted(site: Site, level: float) -> float:
            return sigmoid(offsets.get(site.name, 0.0) + level)

        chosen = self._chosen(operators or {})
        narrowed = [site for site in chosen if site.kind != "heads"]
        least = self.identity().replace({site.name: site.choices[0] for site in narrowed})
        return self.fit(limit, load, narrowed if load(least) <= limit else chosen, wanted)

    def fit(
        self,
        limit: float,
        load: Callable[[Allocation], float],
        sites: Sequence[Site],
        wanted: Callable[[Site, float], float],
        base: Allocation | None = None,
    ) -> Allocation:
        """The allocation that follows a rule with one free level, as near below `limit` as the sizes allow.

        Args:
            limit: upper bound on `load`.
            load: cost of an allocation; grows with every size.
            sites: those that may move; of one operator per branch.
            wanted: (site, level) -> share that the site should keep; grows with the level, from -40 to 40.
            base: sizes of the other sites; dense where it is None.

        Raises:
            AllocationError: at the lowest level the load is above `limit`.
        """
        base = self.identity() if base is None else base

        def at(level: float) -> Allocation:
            return base.replace({site.name: site.nearest(wanted(site, level)) for site in sites})

        if load(whole := base.replace({site.name: site.dense for site in sites})) <= limit:
            return whole
        low, high = -LEVELS, LEVELS
        if load(at(low)) > limit:
            raise AllocationError(
                f"no allocation of space {self.name!r} with these operators has a load of at most {limit:.4g}"
            )
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if load(at(middle)) <= limit else (low, middle)
        return _fill(at(low), sites, lambda site: wanted(site, high), limit, load)

    def _chosen(self, operators: Mapping[str, str]) -> list[Site]:
        chosen: list[Site] = []
        for branch, rivals in self.branches.items():
            by_name = {operator.name: operator for operator in rivals}
            name = operators.get(branch, rivals[0].name)
            if name not in by_name:
                raise AllocationError(f"{branch} has no operator {name!r}: choose one of {', '.join(by_name)}")
            chosen.extend(by_name[name].sites)
        return chosen

    @staticmethod
    def _operator_of(rivals: tuple[Operator, ...], allocation: Allocation) -> Operator:
        return next((operator for operator in rivals if operator.moves(allocation)), rivals[0])


def _fill(
    allocation: Allocation,
    sites: Sequence[Site],
    wanted: Callable[[Site], float],
    limit: float,
    load: Callable[[Allocation], float],
) -> Allocation:
    """Raise one site at a time by one step, the one furthest below its wanted share first, while `limit` holds."""
    open_sites = list(sites)
    while open_sites:
        site = max(open_sites, key=lambda candidate: wanted(candidate) - candidate.share(allocation[candidate.name]))
        step = site.larger(allocation[site.name])
        raised = allocation.replace({site.name: step}) if step is not None else None
        if raised is not None and load(raised) <= limit:
            allocation = raised
        else:
            open_sites.remove(site)
    return allocation


def sigmoid(level: float) -> float:
    """Share of a level in log-odds."""
    return 1.0 / (1.0 + math.exp(-max(-LEVELS, min(LEVELS, level))))
