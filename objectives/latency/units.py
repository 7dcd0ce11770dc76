"""What is measured together for a table of latencies: sites that act on each other, once for all branches that are alike."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from objectives.cost.closed_form import CostModel, Sizes
from spaces.sites import Operator, Site, Space

# Sizes that are measured along every axis: of a single site, of the common width of heads, and of widths that differ.
_COUNTS = {"alone": 8, "equal": 6, "unequal": 4}
_WITH_HEADS = {"alone": 4, "equal": 4, "unequal": 3}


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Sites that are measured together.

    Attributes:
        operator: name of the operator that they belong to.
        parts: what they are called within a branch.
        choices: of every one, the sizes that it offers.
        anchored: whether the dense size continues the smaller ones. A linear layer of any rank below its dense one is two.
        branches: paths of the branches that take the same time at the same sizes.
    """

    operator: str
    parts: tuple[str, ...]
    choices: tuple[tuple[int, ...], ...]
    anchored: bool
    branches: tuple[str, ...]

    @property
    def regimes(self) -> tuple[str, ...]:
        """Ways to compute the branch that differ in kind: fused attention kernels want values as wide as queries and keys."""
        return ("equal", "unequal") if {"qk", "vo"} <= set(self.parts) else ("alone",)

    def regime(self, sizes: Sizes) -> str:
        """The one that sizes, by part, belong to."""
        first = self.regimes[0]
        return "unequal" if first == "equal" and sizes["qk"] != sizes["vo"] else first

    def is_dense(self, sizes: Sizes) -> bool:
        """Whether nothing is cut."""
        return all(sizes[part] == choices[-1] for part, choices in zip(self.parts, self.choices, strict=True))

    def axes(self, regime: str) -> dict[str, tuple[int, ...]]:
        """Part -> the sizes to measure in a regime, in every combination; widths that are equal have one axis, ``qk``."""
        count = (_WITH_HEADS if "heads" in self.parts else _COUNTS)[regime]
        axes = {}
        for part, choices in zip(self.parts, self.choices, strict=True):
            offered = choices if self.anchored or len(choices) == 1 else choices[:-1]
            if regime == "equal" and part == "vo":
                continue
            if regime == "unequal" and part != "heads":  # none of one's sizes is the other's
                offered = offered[0::2] if part == "qk" else offered[1::2]
            axes[part] = _spaced(offered, count)
        return {} if regime == "unequal" and not axes["vo"] else axes

    def sizes(self, regime: str, point: Mapping[str, int]) -> dict[str, int]:
        """Sizes of all parts at a point of a regime's axes."""
        return {**point, "vo": point["qk"]} if regime == "equal" else dict(point)


def units_of(model: nn.Module, space: Space, costs: CostModel) -> list[Unit]:
    """The units of every operator of a space.

    Args:
        model: the dense one.
        space: of it.
        costs: of the space; branches of the same class and sites that cost the same, dense and smallest, are alike.
    """
    alike: dict[object, tuple[Operator, tuple[Site, ...], list[str]]] = {}
    for operator, count in costs.operators:
        path = operator.sites[0].branch
        smallest = {site.part: site.choices[0] for site in operator.sites}
        branch = type(model.get_submodule(path)), operator.name, count(operator.dense_sizes), count(smallest)
        for sites in _together(operator):
            key = (*branch, tuple((site.part, site.choices) for site in sites))
            alike.setdefault(key, (operator, sites, []))[2].append(path)
    return [
        Unit(
            operator=operator.name,
            parts=tuple(site.part for site in sites),
            choices=tuple(site.choices for site in sites),
            anchored=all(site.kind != "rank" for site in sites),
            branches=tuple(branches),
        )
        for operator, sites, branches in alike.values()
    ]


def _together(operator: Operator) -> Iterator[tuple[Site, ...]]:
    """Linear layers of low rank take their time one after the other; the widths of attention act on each other."""
    if all(site.kind == "rank" for site in operator.sites):
        yield from ((site,) for site in operator.sites)
    else:
        yield operator.sites


def _spaced(offered: Sequence[int], count: int) -> tuple[int, ...]:
    """At most `count` of them, the first and the last among them."""
    last = len(offered) - 1
    places = {round(last * step / max(1, count - 1)) for step in range(count)} if last >= 0 else set()
    return tuple(offered[place] for place in sorted(places))
