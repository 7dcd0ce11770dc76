"""Whether mixed precision ranks candidates as float32 does; beside it, whether float32 with another seed does."""

import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from gpu.models import evaluator_of, fashion
from gpu.rows import Figures
from gpu.setting import Setting
from objectives.dense_model import DenseModel
from search.budgets.knapsack import Knapsack
from spaces.allocation import Allocation

SHARES = (0.6, 0.45, 0.35, 0.25, 0.18, 0.12)
WAYS = {"float32": ("off", 0), "mixed precision": ("on", 0), "float32, seed 1": ("off", 1)}
_STEPS, _SPREAD = 60, 0.7


def measure(unit: str, setting: Setting, known: Mapping[str, Figures]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Two allocations at every share of the MACs, each fine-tuned in every way; one row for all ways of an allocation."""
    steps, shares = (2, SHARES[:2]) if setting.tiny else (_STEPS, SHARES)
    evaluators = {
        way: evaluator_of(fashion(setting, amp=amp, steps=steps, space="heads"), setting, "fashion")
        for way, (amp, _) in WAYS.items()
    }
    allocations = _allocations(evaluators["float32"].dense, shares)
    for evaluator in evaluators.values():  # what a first trial pays for is not timed
        evaluator.evaluate(next(iter(allocations.values())), seed=0)
    for name, allocation in allocations.items():
        if name in known:
            continue
        costs = evaluators["float32"].dense.costs
        figures: dict[str, Any] = {"kept": costs.count(allocation, "macs") / costs.dense["macs"]}
        for way, (_, seed) in WAYS.items():
            start = time.perf_counter()
            score = evaluators[way].evaluate(allocation, seed)
            figures |= {f"error, {way}": score.error, f"KL, {way}": score.kl, f"seconds, {way}": time.perf_counter() - start}
        yield name, figures


def _allocations(dense: DenseModel, shares: tuple[float, ...]) -> dict[str, Allocation]:
    """At every share the one that the profile chooses, and one that it chooses with other weights of the sites."""
    knapsack, rng = Knapsack(dense.space, dense.costs, dense.profile.closed), np.random.default_rng(0)
    found: dict[str, Allocation] = {}
    for share in shares:
        allocate = partial(knapsack.allocate, {"macs": share * dense.costs.dense["macs"]})
        random = {site.name: float(rng.normal(0, _SPREAD)) for site in dense.space.sites}
        found |= {f"{share:.0%}": allocate(), f"{share:.0%}, other weights": allocate(random)}
    return found
