"""Site and Space: what can be made smaller, to which sizes, and how a budget becomes an allocation."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from spaces.allocation import Allocation
from spaces.errors import AllocationError

# Spaces that can be searched.
SpaceName = Literal["contract", "heads", "hybrid", "low-rank", "full"]
Role = Literal["attention", "ffn"]  # of a branch: what it computes
Kind = Literal["query_key", "value_output", "heads", "ffn_hidden", "rank", "rows", "inputs", "branch", "tokens"]

DROP = "drop"  # the operator that every branch of a searched space has beside its others: it takes the branch out

# Keep ratios are swept on the log-odds scale; beyond ±40 every site is at an end of its range.
LEVELS = 40.0
_BISECTIONS = 40


@dataclass(frozen=True, kw_only=True)
class Site:
    """A place in the model with one size to choose.

    Attributes:
        name: dotted path, e.g. ``blocks.0.attn.qk`` or ``blocks.3.mlp.hidden``.
        branch: the residual branch it belongs to, e.g. ``blocks.0.attn``; the block, for tokens.
        kind: what the size counts: width per head (query_key, value_output), heads, FFN neurons, the rank of a linear, its
            rows that stay beside a low-rank part (rows), its inputs, the branch itself (0 or 1), or the patch tokens that leave
            the attention of a block (tokens).
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
    def branch(self) -> str:
        """Path of the branch that it makes smaller."""
        return self.sites[0].branch

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
        roles: branch path -> what the branch computes; none of those that are not known, as in the tables of a run.
        tokens: a site for every block, in model order: how many patch tokens leave its attention; none where tokens cannot
            be merged. Their sizes, together a schedule, never grow along the blocks, and a block gives up at most half.
        skipped: what is not offered, with the reason.
    """

    name: str
    branches: Mapping[str, tuple[Operator, ...]]
    roles: Mapping[str, Role] = field(default_factory=dict)
    tokens: tuple[Site, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of all branches, in model order."""
        return tuple(site for rivals in self.branches.values() for operator in rivals for site in operator.sites)

    @property
    def rivals(self) -> dict[str, tuple[Operator, ...]]:
        """Branch -> the operators that make it smaller: all but the one that leaves it out."""
        return {
            branch: tuple(operator for operator in operators if operator.name != DROP)
            for branch, operators in self.branches.items()
        }

    @property
    def all_sites(self) -> tuple[Site, ...]:
        """Those of the branches, and those of tokens."""
        return (*self.sites, *self.tokens)

    def identity(self) -> Allocation:
        """The allocation that keeps everything."""
        return Allocation({site.name: site.dense for site in self.all_sites})

    def lossless(self) -> Allocation:
        """The smallest allocation that computes what the dense model does.

        Where the output reads prefix tokens alone, no patch token leaves the attention of the last block: its queries, its
        projection and its FFN are computed for the prefix tokens.
        """
        return self.identity().replace({site.name: 0 for site in self.tokens if site.choices[0] == 0})

    def schedule(self, allocation: Allocation) -> tuple[int, ...]:
        """Patch tokens that leave the attention of every block; empty where tokens cannot be merged."""
        return tuple(allocation[site.name] for site in self.tokens)

    def merges(self, allocation: Allocation) -> bool:
        """Whether `allocation` merges tokens; that none leave the attention of the last block is no merging."""
        return any(0 < allocation[site.name] < site.dense for site in self.tokens)

    def scheduled(self, schedule: Sequence[int]) -> dict[str, int]:
        """A schedule as sizes of the sites of tokens."""
        return {site.name: count for site, count in zip(self.tokens, schedule, strict=True)}

    def moved(self, allocation: Allocation) -> Iterator[tuple[str, Operator]]:
        """The branches that `allocation` makes smaller, each with the operator that does."""
        for branch, rivals in self.branches.items():
            yield from ((branch, operator) for operator in rivals if operator.moves(allocation))

    def operators(self, allocation: Allocation) -> dict[str, str]:
        """Branch -> name of the operator that `allocation` uses there; the first one where it keeps all."""
        return {branch: self._operator_of(rivals, allocation).name for branch, rivals in self.branches.items()}

    def smallest(self, load: Callable[[Allocation], float]) -> Allocation:
        """The allocation of the smallest `load` that merges no tokens and drops no branch.

        It is the cheapest of rival operators and of the dense branch, branch by branch.
        """
        allocation = self.lossless()
        for rivals in self.rivals.values():
            ends = [allocation.replace({site.name: site.choices[0] for site in operator.sites}) for operator in rivals]
            allocation = min((*ends, allocation), key=load)
        return allocation

    def validate(self, allocation: Allocation) -> None:
        """Raise unless `allocation` is one that this space offers.

        Raises:
            AllocationError: a site is missing, unknown, of a size that is not offered, or moved by two operators.
        """
        sites = {site.name: site for site in self.all_sites}
        for name in sorted(set(allocation) ^ set(sites)):
            problem = "unknown site" if name in allocation else "no size for site"
            raise AllocationError(f"{problem} {name!r}: space {self.name!r} has {', '.join(sites)}")
        for name, size in allocation.items():
            if size not in sites[name].choices:
                raise AllocationError(f"{name} cannot be {size}: choose one of {_listed(sites[name].choices)}")
        self._validate_schedule(allocation)
        for branch, rivals in self.branches.items():
            moved = [operator.name for operator in rivals if operator.moves(allocation)]
            if len(moved) > 1:
                raise AllocationError(f"{branch} is made smaller by {' and '.join(moved)} at once: choose one of them")

    def _validate_schedule(self, allocation: Allocation) -> None:
        """Raise unless the counts of tokens follow from each other."""
        for before, site in pairwise(self.tokens):
            entering, leaving = allocation[before.name], allocation[site.name]
            if site.choices[0] == 0 and leaving in (0, entering):
                continue  # the last block of a model that reads its prefix tokens alone
            if site.choices[0] == 0 or not -(-entering // 2) <= leaving <= entering:
                least = f"0 or {entering}" if site.choices[0] == 0 else f"{-(-entering // 2)} to {entering}"
                raise AllocationError(f"{site.name} cannot be {leaving} where {entering} patch tokens enter: {least}")

    def decode(
        self,
        limit: float,
        load: Callable[[Allocation], float],
        operators: Mapping[str, str] | None = None,
        offsets: Mapping[str, float] | None = None,
        base: Allocation | None = None,
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
            base: an allocation whose tokens and dropped branches are kept; by default all that is not free.

        Raises:
            AllocationError: the smallest allocation with these operators is above `limit`.
        """
        offsets, base = offsets or {}, self.lossless() if base is None else base

        def wanted(site: Site, level: float) -> float:
            return sigmoid(offsets.get(site.name, 0.0) + level)

        dropped = {branch for branch, operator in self.moved(base) if operator.name == DROP}
        chosen = [site for site in self._chosen(operators or {}) if site.branch not in dropped]
        narrowed = [site for site in chosen if site.kind != "heads"]
        least = base.replace({site.name: site.choices[0] for site in narrowed})
        return self.fit(limit, load, narrowed if load(least) <= limit else chosen, wanted, base)

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
            base: sizes of the other sites; where it is None they keep all that is not free.

        Raises:
            AllocationError: at the lowest level the load is above `limit`.
        """
        base = self.lossless() if base is None else base

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
        for branch, rivals in self.rivals.items():
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
    """Raise one site at a time by one step, the one furthest below its wanted share first, while `limit` holds.

    A site is raised to the first size above its share, and no further: in a last block of few tokens all sizes cost so little
    that it would take whatever is left.
    """
    open_sites = list(sites)
    while open_sites:
        site = max(open_sites, key=lambda candidate: wanted(candidate) - candidate.share(allocation[candidate.name]))
        size = allocation[site.name]
        step = site.larger(size) if site.share(size) <= wanted(site) else None
        raised = allocation.replace({site.name: step}) if step is not None else None
        if raised is not None and load(raised) <= limit:
            allocation = raised
        else:
            open_sites.remove(site)
    return allocation


def _listed(sizes: Sequence[int]) -> str:
    """Sizes for people; a range of many by its ends."""
    if len(sizes) > 20 and sizes[-1] - sizes[1] == len(sizes) - 2:
        return f"{', '.join(map(str, sizes[:2]))} … {sizes[-1]}"
    return ", ".join(map(str, sizes))


def sigmoid(level: float) -> float:
    """Share of a level in log-odds."""
    return 1.0 / (1.0 + math.exp(-max(-LEVELS, min(LEVELS, level))))
