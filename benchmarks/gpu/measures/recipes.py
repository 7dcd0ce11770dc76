"""The seed papers' recipes and the engine with 20 epochs after the cut, at 60 % of the parameters, as GOHSP keeps."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from gpu.models import BATCH, error_on_test, evaluator_of, fashion
from gpu.rows import Figures
from gpu.setting import Setting
from objectives.cost.closed_form import cost_model
from objectives.dense_model import DenseModel
from objectives.recipes.registry import RECIPES, make_cut
from objectives.runtime.progress import Step
from objectives.runtime.seeding import seed_everything
from objectives.training.finetune import finetune
from search.budgets.knapsack import Knapsack

DENSE, ENGINE = "dense", "engine"
_EPOCHS, _SHARE, _KEPT = 20, 0.25, 0.6  # of the steps of a recipe that trains, the quarter before its cut
_LR = 1e-3  # for batches four times as large as those of the short fine-tune
_TOLD = 100


def measure(unit: str, setting: Setting, known: Mapping[str, Figures]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Cut to 60 % of the parameters and train for 20 epochs: a row at the cut, and one after them.

    The steps that a recipe takes before its cut come on top, so that all have as many after it; the engine has none before.
    """
    name, seed = unit.split(", seed ")
    batch = 32 if setting.tiny else BATCH
    evaluator = evaluator_of(fashion(setting, batch_size=batch, space="heads", lr=_LR, recipe_share=_SHARE), setting, "fashion")
    dense = evaluator.dense
    after = 6 if setting.tiny else _EPOCHS * dense.data.epoch_steps
    before = round(after * _SHARE / (1 - _SHARE)) if name in RECIPES and RECIPES[name].trains else 0
    config = replace(dense.objective.finetune, steps=before + after)
    dense.objective = replace(dense.objective, finetune=config)
    start = time.perf_counter()
    model, batches, figures = _cut(dense, name, int(seed), before + after)
    figures["steps before"] = before
    model = model.to(dense.device)
    yield "at the cut", {**figures, "test split": error_on_test(evaluator, model), "seconds": time.perf_counter() - start}
    for step in finetune(model, islice(batches, after), replace(config, steps=after)):
        _tell(step)
    yield "after 20 epochs", {
        **figures, "steps after": after, "test split": error_on_test(evaluator, model), "seconds": time.perf_counter() - start
    }  # fmt: skip


def _cut(dense: DenseModel, name: str, seed: int, steps: int) -> tuple[Any, Any, dict[str, Any]]:
    """The cut model, the batches that are left for it, and what it keeps."""
    limits = {"params": _KEPT * dense.costs.dense["params"]}
    if name in RECIPES:
        bench, cut = make_cut(dense, name, limits, seed, _tell)
        model, allocation, space, batches = cut.model, cut.allocation, bench.space, bench.batches
    else:
        seed_everything(seed)
        space, batches = dense.space, dense.batches.training(steps, seed)
        knapsack = Knapsack(space, dense.costs, dense.profile.closed)
        allocation = space.identity() if name == DENSE else knapsack.allocate(limits)
        model = dense.factors.build(allocation)
    costs = cost_model(dense.model, space)
    kept = {cost: count / costs.dense[cost] for cost, count in costs.costs(allocation).items()}
    return model, batches, {"MACs kept": kept["macs"], "parameters kept": kept["params"]}


def _tell(step: Step) -> None:
    if step.step % _TOLD == 0:
        print(f"step {step.step}: loss {step.loss:.4f}", flush=True)
