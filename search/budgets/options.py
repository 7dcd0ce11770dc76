"""What the branches of a space offer to the knapsack: one row per combination of the sizes of one of a branch's operators."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.cost.closed_form import CostModel
from objectives.profile import Errors
from spaces.sites import Operator, Space

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Options:
    """All options of a space, those of a branch one after the other.

    Attributes:
        branch: index of the branch of each, [options].
        sizes: less the dense ones, [options, sites].
        features: errors of the sites, [options, sites].
        costs: less the dense branch's, [options, costs].
        dense: costs of the dense model, [costs].
    """

    branch: Indices
    sizes: Indices
    features: Floats
    costs: Floats
    dense: Floats

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
    """The options of a space; its costs and sites in the order of `costs.names` and `space.sites`."""
    sites = tuple(site.name for site in space.sites)
    counts = {id(operator): count for operator, count in costs.operators}
    rows, branch = [], []
    for index, rivals in enumerate(space.branches.values()):
        for operator in rivals:
            rows.append(_options(operator, counts[id(operator)], sites, errors))
            branch += [index] * len(rows[-1][0])
    return Options(
        branch=np.array(branch),
        sizes=np.concatenate([sizes for sizes, _, _ in rows]),
        features=np.concatenate([features for _, features, _ in rows]),
        costs=np.concatenate([counted for _, _, counted in rows]),
        dense=np.array([costs.dense[cost] for cost in costs.names], dtype=float),
    )


def _options(
    operator: Operator, count: Callable[[Mapping[str, int]], Any], sites: tuple[str, ...], errors: Errors
) -> tuple[Indices, Floats, Floats]:
    """What one operator offers its branch: sizes less the dense ones, errors, and costs less the dense ones."""
    columns = [sites.index(site.name) for site in operator.sites]
    rows = np.array(list(itertools.product(*(site.choices for site in operator.sites))))
    parts = [site.part for site in operator.sites]
    counted = np.array([count(dict(zip(parts, row, strict=True))) for row in rows.tolist()], dtype=float)
    sizes, lost = np.zeros((len(rows), len(sites)), dtype=int), np.zeros((len(rows), len(sites)))
    for position, (column, site) in enumerate(zip(columns, operator.sites, strict=True)):
        sizes[:, column] = rows[:, position] - site.dense
        lost[:, column] = [errors[site.name][size] for size in rows[:, position].tolist()]
    whole = count(operator.dense_sizes)
    return sizes, lost, counted - np.array(whole)
