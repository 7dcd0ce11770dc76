"""A search problem that costs nothing to evaluate and whose front is known: what samplers are compared on.

Like a vision transformer of 16 blocks it has 48 sites (two in every attention branch, one in every FFN branch) of 8 sizes. A
site at share r of its size adds the error s (exp(-k r) - exp(-k)) / (1 - exp(-k)); sensitivities s and decays k differ from
site to site by factors. On top of the sum there are interactions of pairs, of either sign: products of the roots of their
errors, and products of how much of them is gone. A candidate's error rises with the total from that of the dense model towards
chance. What a search knows is a profile: every site's own curve, wrong by a factor of e^(0.6 N(0, 1)) and bent. The best front
known comes from the true curves and is then improved by exchanges that know the interactions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.cost.closed_form import CostModel
from search.budgets.knapsack import Knapsack
from search.pareto import hypervolume
from spaces.allocation import Allocation
from spaces.sites import Operator, Site, Space

REFERENCE = (1.0, 1.0)  # share of MACs, error
DENSE_ERROR, CHANCE = 0.05, 0.9
_CHOICES = tuple(range(1, 9))
_BLOCKS = 16
_WRONG, _BENT = 0.6, 0.5
_SPREAD = 1.5
_TOTAL = 5.0
_BUDGETS = 40

Floats = NDArray[np.float64]
Sizes = NDArray[np.int64]


@dataclass(frozen=True)
class Surrogate:
    """One draw of the problem.

    Args:
        seed: of the sensitivities, the interactions and the profile's errors.
        noise: standard deviation of what is added to every evaluated error.
        interaction: strength of the interactions; 0 makes errors additive.
    """

    seed: int = 0
    noise: float = 0.0
    interaction: float = 1.0

    @cached_property
    def space(self) -> Space:
        """16 blocks of an attention branch with two sites and an FFN branch with one."""
        branches = {}
        for block in range(_BLOCKS):
            for branch, parts in ((f"blocks.{block}.attn", ("qk", "vo")), (f"blocks.{block}.mlp", ("hidden",))):
                sites = tuple(
                    Site(name=f"{branch}.{part}", branch=branch, kind="ffn_hidden", choices=_CHOICES) for part in parts
                )
                branches[branch] = (Operator(name="cut", sites=sites),)
        return Space(name="surrogate", branches=branches)

    @cached_property
    def costs(self) -> CostModel:
        """Linear in the sizes; a twentieth of the model cannot be removed."""
        operators = tuple((rivals[0], _count) for rivals in self.space.branches.values())
        whole = sum(_count({site.part: site.dense for site in operator.sites})[0] for operator, _ in operators)
        return CostModel({"macs": whole + whole // 20, "params": whole + whole // 20}, operators)

    @cached_property
    def _draws(self) -> tuple[Floats, Floats, Floats]:
        """Own errors [sites, sizes], interactions of pairs [sites, sites], and what the profile is wrong by [sites]."""
        rng = np.random.default_rng(self.seed)
        count = len(self.space.sites)
        sensitivity = np.exp(_SPREAD * rng.standard_normal(count))
        sensitivity *= _TOTAL / sensitivity.sum()
        decay = 4.0 * np.exp(0.5 * rng.standard_normal(count))[:, None]
        share = np.array(_CHOICES) / _CHOICES[-1]
        own = sensitivity[:, None] * (np.exp(-decay * share) - np.exp(-decay)) / (1 - np.exp(-decay))
        pairs = np.triu(rng.standard_normal((2, count, count)), 1) / np.sqrt(count)
        pairs[1] *= 0.4 * _TOTAL / count  # per unit of size removed; the first are per root of error
        wrong = np.exp(_WRONG * rng.standard_normal((count, 1)) + _BENT * rng.standard_normal((count, 1)) * (1 - share))
        return own, self.interaction * (pairs + pairs.transpose(0, 2, 1)) / 2, wrong

    @cached_property
    def profile(self) -> dict[str, dict[int, float]]:
        """What a search is told: site -> size -> its own error, wrong by a factor."""
        own, _, wrong = self._draws
        return self._table(own * wrong)

    def error(self, allocation: Allocation) -> float:
        """Without noise."""
        return float(_of_total(self._totals(self._row(allocation))))

    def evaluate(self, allocation: Allocation, rng: np.random.Generator) -> float:
        """As a trial sees it."""
        return self.error(allocation) + self.noise * float(rng.standard_normal())

    def share(self, allocation: Allocation) -> float:
        """Share of the MACs that an allocation keeps."""
        return self.costs.count(allocation, "macs") / self.costs.dense["macs"]

    @cached_property
    def front(self) -> list[tuple[float, float]]:
        """Points (share, error) of the true front."""
        knapsack = Knapsack(self.space, self.costs, self._table(self._draws[0]))
        least = self.costs.count(self.space.smallest(lambda allocation: self.costs.count(allocation, "macs")), "macs")
        points = []
        for limit in np.linspace(least, self.costs.dense["macs"], _BUDGETS):
            row = self._improved(self._row(knapsack.allocate({"macs": limit})), limit)
            points.append((self._macs(row) / self.costs.dense["macs"], _of_total(self._totals(row))))
        return points

    @cached_property
    def volume(self) -> float:
        """Hypervolume of the true front."""
        return hypervolume(self.front, REFERENCE)

    def _improved(self, row: Sizes, limit: float) -> Sizes:
        """Better the total by the best exchange of a step between two sites until none betters it."""
        count = len(row)
        steps = np.eye(count, dtype=int)
        moves = np.concatenate([steps, (steps[:, None] - steps[None]).reshape(-1, count)])
        while True:
            candidates = row + moves
            fits = (candidates >= 1).all(1) & (candidates <= _CHOICES[-1]).all(1)
            candidates = candidates[fits]
            candidates = candidates[self._macs(candidates) <= limit]
            totals = self._totals(candidates)
            if not len(totals) or totals.min() >= self._totals(row) - 1e-12:
                return row
            row = candidates[totals.argmin()]

    def _totals(self, rows: Sizes) -> Any:
        """Sums of the sites' own errors and of the interactions; [..., sites] -> [...]."""
        own, pairs, _ = self._draws
        errors = own[np.arange(rows.shape[-1]), rows - 1]
        roots, removed = np.sqrt(errors), 1 - rows / _CHOICES[-1]
        between = ((roots @ pairs[0]) * roots).sum(-1) + ((removed @ pairs[1]) * removed).sum(-1)
        return np.maximum(errors.sum(-1) + between, 0.0)

    def _macs(self, rows: Sizes) -> Any:
        weights = np.array([_count({site.part: 1})[0] for site in self.space.sites])
        whole = int(weights.sum()) * _CHOICES[-1]
        return rows @ weights + self.costs.dense["macs"] - whole

    def _row(self, allocation: Allocation) -> Sizes:
        return np.array([allocation[site.name] for site in self.space.sites])

    def _table(self, errors: Floats) -> dict[str, dict[int, float]]:
        return {
            site.name: dict(zip(site.choices, row.tolist(), strict=True))
            for site, row in zip(self.space.sites, errors, strict=True)
        }


def _of_total(total: Any) -> Any:
    return DENSE_ERROR + (CHANCE - DENSE_ERROR) * (1 - np.exp(-total))


def _count(sizes: Mapping[str, int]) -> tuple[int, int]:
    """FFN sites weigh as much as both attention sites of a block together, twice."""
    cost = sum(size * (8 if part == "hidden" else 2) for part, size in sizes.items())
    return cost, cost
