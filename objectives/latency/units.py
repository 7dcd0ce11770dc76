"""What is measured together for a table of latencies: sites that act on each other, once for all branches that are alike."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from objectives.cost.closed_form import CostModel
from spaces.operators.base import Sizes
from spaces.operators.registry import OPERATORS
from spaces.sites import Operator, Role, Site, Space

# Sizes that are measured along every axis: of a single site, of the common width of heads, and of widths that differ.
_COUNTS = {"alone": 8, "equal": 6, "unequal": 4}
_WITH_HEADS = {"alone": 4, "equal": 4, "unequal": 3}


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Sites that are measured together.

    Attributes:
        operator: name of the operator that they belong to.
        role: of their branches.
        parts: what they are called within a branch.
        choices: of every one, the sizes that it offers.
        anchored: whether the dense size continues the smaller ones (`Timing.continuous`).
        branches: paths of the branches that take the same time at the same sizes.
    """

    operator: str
    role: Role
    parts: tuple[str, ...]
    choices: tuple[tuple[int, ...], ...]
    anchored: bool
    branches: tuple[str, ...]

    @property
    def regimes(self) -> tuple[str, ...]:
        """Ways to compute the branch that differ in kind: with paired sizes that are equal, or that are not."""
        return ("equal", "unequal") if self._pair else ("alone",)

    def regime(self, sizes: Sizes) -> str:
        """The one that sizes, by part, belong to."""
        if not self._pair:
            return "alone"
        first, second = self._pair
        return "equal" if sizes[first] == sizes[second] else "unequal"

    def is_dense(self, sizes: Sizes) -> bool:
        """Whether nothing is cut."""
        return all(sizes[part] == choices[-1] for part, choices in zip(self.parts, self.choices, strict=True))

    def axes(self, regime: str) -> dict[str, tuple[int, ...]]:
        """Part -> the sizes to measure in a regime, in every combination; sizes that are equal have one axis, the first's."""
        count = (_WITH_HEADS if "heads" in self.parts else _COUNTS)[regime]
        first, second = self._pair or ("", "")
        axes = {}
        for part, choices in zip(self.parts, self.choices, strict=True):
            offered = choices if self.anchored or len(choices) == 1 else choices[:-1]
            if regime == "equal" and part == second:
                continue
            if regime == "unequal" and part in (first, second):  # none of one's sizes is the other's
                offered = offered[0::2] if part == first else offered[1::2]
            axes[part] = _spaced(offered, count)
        return {} if regime == "unequal" and not axes[second] else axes

    def sizes(self, regime: str, point: Mapping[str, int]) -> dict[str, int]:
        """Sizes of all parts at a point of a regime's axes."""
        if regime != "equal" or not self._pair:
            return dict(point)
        first, second = self._pair
        return {**point, second: point[first]}

    @property
    def _pair(self) -> tuple[str, str] | None:
        """The paired parts of its operator, if it has both."""
        pair = OPERATORS[self.operator].timing.paired
        return pair if pair and set(pair) <= set(self.parts) else None


def units_of(model: nn.Module, space: Space, costs: CostModel) -> list[Unit]:
    """The units of every operator of a space.

    Args:
        model: the dense one.
        space: of it.
        costs: of the space; branches of the same class and sites that cost the same, dense and smallest, are alike.
    """
    alike: dict[object, tuple[Operator, tuple[Site, ...], list[str]]] = {}
    for operator, count in costs.operators:
        path = operator.branch
        smallest = {site.part: site.choices[0] for site in operator.sites}
        branch = type(model.get_submodule(path)), operator.name, count(operator.dense_sizes), count(smallest)
        for sites in _together(operator):
            key = (*branch, tuple((site.part, site.choices) for site in sites))
            alike.setdefault(key, (operator, sites, []))[2].append(path)
    return [
        Unit(
            operator=operator.name,
            role=space.roles[operator.branch],
            parts=tuple(site.part for site in sites),
            choices=tuple(site.choices for site in sites),
            anchored=OPERATORS[operator.name].timing.continuous,
            branches=tuple(branches),
        )
        for operator, sites, branches in alike.values()
    ]


def _together(operator: Operator) -> Iterator[tuple[Site, ...]]:
    if OPERATORS[operator.name].timing.together:
        yield operator.sites
    else:
        yield from ((site,) for site in operator.sites)


def _spaced(offered: Sequence[int], count: int) -> tuple[int, ...]:
    """At most `count` of them, the first and the last among them."""
    last = len(offered) - 1
    places = {round(last * step / max(1, count - 1)) for step in range(count)} if last >= 0 else set()
    return tuple(offered[place] for place in sorted(places))
