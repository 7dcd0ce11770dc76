"""Named recipes: the seed papers' systems and controls, run and measured as candidates are.

A recipe turns the dense model and a budget into a compressed model, which then gets the candidates' fine-tune. One that trains
before its cut pays for it: its steps are taken from the fine-tune's, so that every trial costs the same number of steps.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from objectives.cost.spec import COSTS, Cost
from objectives.dense_model import DenseModel
from objectives.evaluator import Evaluator, OnStep
from objectives.recipes.gohsp import prune_by_admm
from objectives.recipes.kumar_hybrid import hybrid_plain, hybrid_whitened
from objectives.recipes.losparse import prune_by_rows
from objectives.recipes.names import HEAD_RANKINGS
from objectives.recipes.vtp import prune_by_gates
from objectives.recipes.workbench import Cut, Workbench
from objectives.runtime.out_of_memory import within_memory
from objectives.runtime.seeding import seed_everything
from objectives.score import Score
from spaces.allocation import Allocation
from spaces.errors import AllocationError, ConfigError
from spaces.operators.registry import Variants
from spaces.sites import Kind, Site, sigmoid


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to compress a model to a budget with no search.

    Attributes:
        space: name of the space that its allocations are of.
        make: from a workbench to a cut model.
        kinds: kinds of sites that it moves; None for all of the space.
        trains: whether it spends optimiser steps before its cut.
    """

    space: str
    make: Callable[[Workbench], Cut]
    kinds: frozenset[Kind] | None = None
    trains: bool = False


def _uniform_cut(bench: Workbench, variants: Variants) -> Cut:
    """The same share everywhere."""
    allocation = bench.fit(lambda site, level: sigmoid(level))
    return Cut(model=bench.dense.factors_of(bench.space, variants).build(allocation), allocation=allocation)


def _magnitude(bench: Workbench) -> Cut:
    """Narrower heads and fewer neurons by weight norms, uncorrected."""
    return _uniform_cut(bench, {"query_key": "magnitude", "value_output": "magnitude", "ffn_hidden": "magnitude"})


def _energy(bench: Workbench) -> Cut:
    """The same share of the squared singular values in every layer: ranks follow from the spectra."""
    factors = bench.dense.factors_of(bench.space, {"rank": "plain"})
    lost = {site.name: factors.error(site) for site in bench.sites}
    total = {site.name: factors.total(site) for site in bench.sites}

    def wanted(site: Site, level: float) -> float:
        kept = [size for size in site.choices if lost[site.name][size] <= (1 - sigmoid(level)) * total[site.name]]
        return site.share(kept[0])

    allocation = bench.fit(wanted)
    return Cut(model=factors.build(allocation), allocation=allocation)


def _heads(ranking: str) -> Recipe:
    """Whole heads by a ranking and FFN neurons, the same share of both."""
    return Recipe(
        space="heads",
        kinds=frozenset({"heads", "ffn_hidden"}),
        make=lambda bench: _uniform_cut(bench, {"heads": ranking}),
    )


# Of every name of `names.py`. What each does: docs/recipes.md.
RECIPES: dict[str, Recipe] = {
    "kumar-hybrid": Recipe(space="hybrid", make=hybrid_plain, trains=True),
    "kumar-hybrid-whitened": Recipe(space="hybrid", make=hybrid_whitened, trains=True),
    "vtp": Recipe(space="gated", make=prune_by_gates, trains=True),
    "gohsp": Recipe(space="heads", make=prune_by_admm, trains=True),
    "losparse": Recipe(space="low-rank-sparse", make=prune_by_rows, trains=True),
    "svd-energy": Recipe(space="low-rank", make=_energy),
    "magnitude": Recipe(space="contract", make=_magnitude),
    **{f"heads-{ranking}": _heads(ranking) for ranking in HEAD_RANKINGS},
}


def recipe_of(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        ConfigError: unknown name.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]


def open_workbench(
    dense: DenseModel,
    name: str,
    limits: Mapping[Cost, float],
    seed: int,
    on_step: OnStep = lambda step: None,
    parts: int = 1,
) -> Workbench:
    """What the recipe called `name` works with."""
    recipe, config = recipe_of(name), dense.objective.finetune
    steps = round(config.recipe_share * config.steps) if recipe.trains else 0
    return Workbench(dense, recipe.space, recipe.kinds, limits, steps, seed, on_step, parts)


def make_cut(
    dense: DenseModel,
    name: str,
    limits: Mapping[Cost, float],
    seed: int,
    on_step: OnStep = lambda step: None,
    parts: int = 1,
) -> tuple[Workbench, Cut]:
    """Run a recipe up to its cut: the model before its fine-tune."""
    seed_everything(seed)
    bench = open_workbench(dense, name, limits, seed, on_step, parts)
    return bench, recipe_of(name).make(bench)


def evaluate_recipe(
    evaluator: Evaluator,
    name: str,
    limits: Mapping[Cost, float],
    seed: int,
    on_step: OnStep = lambda step: None,
    weights: Path | None = None,
    outcomes: Path | None = None,
) -> tuple[Score, Allocation]:
    """Run a recipe, fine-tune what it makes, and measure it: `Evaluator.evaluate` for recipes.

    Args:
        evaluator: as for candidates. A recipe takes one process and one device: of a group, the first process alone calls this.
        name: of the recipe.
        limits: cost -> upper bound; counted costs alone.
        seed: of the batches; those before the cut and those after it are one stream, a candidate's.
        on_step: called after every optimiser step, before the cut and after it.
        weights: file for the fine-tuned weights; not kept if None.
        outcomes: file for what the fine-tuned model made of every image of the search split; not kept if None.

    Returns:
        The score, and the allocation in the space of the recipe.

    Raises:
        AllocationError: the recipe cannot keep the limits.
        DivergedError: the loss or the outputs became NaN or infinite.
    """
    evaluator = evaluator.alone()
    dense = evaluator.dense

    def attempt(parts: int) -> tuple[Score, Allocation]:
        start = time.perf_counter()
        bench, cut = make_cut(dense, name, limits, seed, on_step, parts)
        costs = bench.costs.costs(cut.allocation)
        if dense.latency is not None:  # its space is not the table's
            costs["latency"] = dense.time(cut.model)
        score = evaluator.finish(
            cut.model, costs, bench.batches, start, bench.steps, on_step, weights, parts=parts, outcomes=outcomes
        )  # fmt: skip
        return score, cut.allocation

    return within_memory(attempt)


def check_reach(dense: DenseModel, name: str, limits: Mapping[Cost, float]) -> None:
    """Raise unless the recipe called `name` can keep these limits.

    Raises:
        ConfigError: unknown recipe.
        AllocationError: the smallest model that it makes is above a limit.
    """
    bench = open_workbench(dense, name, limits, seed=0)
    least = bench.smallest()
    if bench.load(least) > 1:
        costs, whole = bench.costs.costs(least), bench.costs.dense
        kept = " and ".join(f"{costs[cost] / whole[cost]:.1%} of {COSTS[cost].word}" for cost in limits)
        raise AllocationError(f"recipe {name!r} cannot keep this budget: the smallest model that it makes keeps {kept}")
