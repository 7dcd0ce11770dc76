"""What the branches of a space offer to the knapsack: one row per combination of the sizes of one of a branch's operators."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from objectives.cost.closed_form import CostModel
from objectives.profile import Errors
from spaces.sites import DROP, Operator, Site, Space

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Options:
    """Options of the branches of a space, those of a branch one after the other.

    Attributes:
        branch: index of the branch of each, [options].
        is_drop: whether it leaves the branch out, [options].
        sizes: less the dense ones, [options, sites of branches].
        features: errors of the sites that have widths or ranks, [options, those sites].
        costs: less the dense branch's, [options, costs].
        dense: costs with all branches dense, [costs].
    """

    branch: Indices
    is_drop: NDArray[np.bool_]
    sizes: Indices
    features: Floats
    costs: Floats
    dense: Floats

    def within(self, rows: Indices, costs: Floats, dense: Floats) -> "Options":
        """Some of the options, with costs of all options within another schedule, and of the model with all branches dense."""
        return Options(self.branch[rows], self.is_drop[rows], self.sizes[rows], self.features[rows], costs[rows], dense)

    @cached_property
    def starts(self) -> Indices:
        """First option of every branch, [branches]."""
        return np.flatnonzero(np.diff(self.branch, prepend=-1))

    @cached_property
    def layout(self) -> Indices:
        """Options of every branch in a row of the same length, the first one repeated to fill it, [branches, most]."""
        ends = np.append(self.starts[1:], len(self.branch))
        places = self.starts[:, None] + np.arange((ends - self.starts).max())
        return np.where(places < ends[:, None], places, self.starts[:, None])

    @cached_property
    def _errors(self) -> list[tuple[Indices, Floats]]:
        """The errors of the options as sums of few: sites and their errors, each [options]."""
        shown = (self.features != 0).sum(1).max(initial=1)
        sites = np.argsort(self.features == 0, axis=1, kind="stable")[:, :shown]
        values = np.take_along_axis(self.features, sites, axis=1)
        return list(zip(sites.T, values.T, strict=True))

    def weighted(self, multipliers: Floats) -> Floats:
        """Errors of the options, [rows, options], by logarithms of factors on those of the sites, [rows, sites].

        A row does not depend on the others, to the last bit: what is decoded together must not decide what it comes to.
        """
        factors = np.exp(multipliers)
        (site, value), *others = self._errors
        total: Floats = factors[:, site] * value
        for site, value in others:
            total += factors[:, site] * value
        return total


def options_of(space: Space, costs: CostModel, errors: Errors) -> Options:
    """The options of a space; its costs in the order of `costs.names`, its sites in that of `space.sites`."""
    sites, widths = [site.name for site in space.sites], [site.name for site in width_sites(space)]
    rows, branch, is_drop = [], list[int](), list[bool]()
    for index, rivals in enumerate(space.branches.values()):
        for operator in rivals:
            rows.append(_options(operator, sites, widths, errors))
            branch += [index] * len(rows[-1][0])
            is_drop += [operator.name == DROP] * len(rows[-1][0])
    counted, dense = costs_of(space, costs)
    return Options(
        branch=np.array(branch),
        is_drop=np.array(is_drop),
        sizes=np.concatenate([sizes for sizes, _ in rows]),
        features=np.concatenate([features for _, features in rows]),
        costs=counted,
        dense=dense,
    )


def costs_of(space: Space, costs: CostModel) -> tuple[Floats, Floats]:
    """What all options cost less the dense branch, [options, costs], and the model with all branches dense, [costs]."""
    return np.concatenate(list(_costs(space, costs))), np.array(list(costs.base.values()), dtype=float)


def width_sites(space: Space) -> tuple[Site, ...]:
    """The sites of branches whose errors add up: all but those that leave a branch out."""
    return tuple(site for site in space.sites if site.kind != "branch")


def _combinations(operator: Operator) -> list[tuple[int, ...]]:
    return list(itertools.product(*(site.choices for site in operator.sites)))


def _options(operator: Operator, sites: Sequence[str], widths: Sequence[str], errors: Errors) -> tuple[Indices, Floats]:
    """What one operator offers its branch: sizes less the dense ones, and errors."""
    rows = np.array(_combinations(operator))
    sizes, lost = np.zeros((len(rows), len(sites)), dtype=int), np.zeros((len(rows), len(widths)))
    for position, site in enumerate(operator.sites):
        sizes[:, sites.index(site.name)] = rows[:, position] - site.dense
        if site.name in widths:
            lost[:, widths.index(site.name)] = [errors[site.name][size] for size in rows[:, position].tolist()]
    return sizes, lost


def _costs(space: Space, costs: CostModel) -> Iterator[Floats]:
    """What the options of one operator after the other cost, less the dense branch, [options, costs]."""
    counts = {(operator.branch, operator.name): count for operator, count in costs.operators}
    for operator in (operator for rivals in space.branches.values() for operator in rivals):
        parts, count = [site.part for site in operator.sites], counts[operator.branch, operator.name]
        counted = [count(dict(zip(parts, row, strict=True))) for row in _combinations(operator)]
        yield np.array(counted, dtype=float) - np.array(count(operator.dense_sizes))
