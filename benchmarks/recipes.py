"""What searching gains over the published recipes: error against the share of MACs kept, for every recipe and the engine.

    python benchmarks/fashion_mnist.py
    python benchmarks/recipes.py measure --model fmnist --checkpoint fmnist_vit.safetensors    # an hour on 2 cores, see below
    python benchmarks/recipes.py measure --model digits
    python benchmarks/recipes.py report

Measurements are appended to a file of JSON lines and never repeated, so the work can be stopped, continued and shared between
processes (`--seeds 0`, `--methods vtp gohsp`). `--full` measures all methods at 70, 56, 50, 30, 20, 12, 8 and 5 % after the
short and the long fine-tune, for a machine with a GPU; the default measures fewer.

Every method gets the same number of optimiser steps on the same batches; recipes that train before their cut pay for it out of
these. All errors are on the test split, which nothing was selected on. Relative errors are against the dense model given the
same fine-tune with the same seed.
"""

import argparse
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import fashion_mnist
import torch
from recipes_report import DENSE, Result, read, report
from torch import nn

from objectives.cost.closed_form import cost_model
from objectives.cost.spec import Cost
from objectives.dense_model import load_dense
from objectives.error import evaluate
from objectives.evaluator import Evaluator
from objectives.recipes.registry import RECIPES, check_reach, make_cut
from objectives.runtime.seeding import seed_everything
from objectives.training.finetune import finetune
from search import launch, open_run
from search.budgets.knapsack import Knapsack
from search.config import SearchConfig
from search.driver import demo
from search.driver.demo_options import OPTIONS
from search.terminal.display import Display
from spaces.allocation import Allocation
from spaces.errors import CompressionError
from spaces.sites import Space

RUNS = Path("runs/recipes")
BUDGETS = (70, 56, 50, 30, 20, 12, 8, 5)
UNIFORM, START, SEARCH = "uniform", "engine: closed form", "engine: searched"
SEEDS = [name for name in RECIPES if not name.startswith("heads-")]
RANKINGS = [name for name in RECIPES if name.startswith("heads-")]
LONG = 10  # times the short fine-tune

# Model -> (budgets, methods) measured by default after the short fine-tune, most telling first; budgets in % of MACs.
DEFAULT: dict[str, list[tuple[tuple[int, ...], list[str]]]] = {
    "fmnist": [
        ((12, 20, 8), [START, *SEEDS, UNIFORM]),
        ((12, 8), [SEARCH]),
        ((10,), [START, SEARCH, UNIFORM]),
        ((50,), ["kumar-hybrid", "kumar-hybrid-whitened", "vtp"]),
        ((56,), ["vtp"]),
        ((50,), RANKINGS),
        ((30, 50), [START, *SEEDS, UNIFORM]),
    ],
    "digits": [((50, 30, 20, 12, 8), [START, *SEEDS, UNIFORM]), ((70, 50), RANKINGS), ((56,), ["vtp"])],
}
LONG_DEFAULT = {"fmnist": (12,), "digits": (20,)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "report"])
    parser.add_argument("--model", choices=DEFAULT, default="fmnist")
    parser.add_argument("--checkpoint", default="data/fmnist_vit.safetensors", help="of the Fashion-MNIST model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--budgets", type=int, nargs="+", help="only these, in %% of MACs")
    parser.add_argument("--long", action="store_true", help="the long fine-tune in place of the short one")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--trials", type=int, default=30, help="of the engine's search")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RUNS / "results.jsonl")
    arguments = parser.parse_args()
    if arguments.what == "report":
        report(read(arguments.output))
        return
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments.model, config_of(arguments.model, arguments.checkpoint, arguments.threads), arguments.trials)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for method, budget, seed, steps in planned(arguments, bench.short):
        done = {result.key for result in read(arguments.output)}
        if (arguments.model, method, budget, seed, steps) in done:
            continue
        try:
            result = bench.measure(method, budget, seed, steps)
        except CompressionError as error:
            print(f"{method} {budget}: {error}", flush=True)
            continue
        with arguments.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        print(f"{method} {budget} seed {seed} steps {steps}: {result.before:.2%} -> {result.after:.2%}", flush=True)


def planned(arguments: argparse.Namespace, short: int) -> Iterator[tuple[str, str, int, int]]:
    """Method, budget, seed and steps of every measurement, the dense model of a seed before all others."""
    everything = [(BUDGETS, [START, *SEEDS, UNIFORM, SEARCH, *RANKINGS])]
    plan: Sequence[tuple[tuple[int, ...], Sequence[str]]] = everything if arguments.full else DEFAULT[arguments.model]
    lengths = [LONG * short] if arguments.long else [short, LONG * short] if arguments.full else [short]
    for steps in lengths:
        if arguments.long and not arguments.full:
            plan = [(LONG_DEFAULT[arguments.model], [START, SEARCH, *SEEDS, UNIFORM])]
        for budgets, methods in plan:
            for seed in arguments.seeds:
                yield DENSE, "", seed, steps
                for budget in budgets:
                    for method in methods:
                        if not _left_out(method, budget, arguments):
                            yield method, f"flops={budget}%", seed, steps
        for seed in arguments.seeds if not arguments.long and "gohsp" in (arguments.methods or ["gohsp"]) else ():
            yield "gohsp", "params=60%", seed, steps


def _left_out(method: str, budget: int, arguments: argparse.Namespace) -> bool:
    return (arguments.methods and method not in arguments.methods) or (arguments.budgets and budget not in arguments.budgets)


def config_of(model: str, checkpoint: str, threads: int) -> SearchConfig:
    """The options of one of the two models: its images, and the short fine-tune."""
    if model == "fmnist":
        return SearchConfig.from_flat({**fashion_mnist.OPTIONS, "checkpoint": checkpoint, "threads": threads, "space": "heads"})
    options = {**OPTIONS, "lr": 5e-4, "output": str(RUNS / "digits"), "threads": threads, "space": "heads"}
    return demo.with_dense_model(SearchConfig.from_flat(options), lambda what, done, total: None)


class Bench:
    """One model, ready to be compressed in every way."""

    def __init__(self, model: str, config: SearchConfig, trials: int) -> None:
        self.model, self.config, self.trials = model, config, trials
        self.evaluator = Evaluator(load_dense(config.objective(RUNS / model)))
        self.short = config.finetune.steps

    def measure(self, method: str, budget: str, seed: int, steps: int) -> Result:
        """Compress, fine-tune and measure once."""
        start = time.perf_counter()
        objective = self.evaluator.dense.objective
        self.evaluator.dense.objective = replace(objective, finetune=replace(objective.finetune, steps=steps))
        space, allocation, model, batches, left = self._cut(method, budget, seed, steps)
        model = model.to(self.evaluator.dense.device)
        before = self._error(model)
        for _ in finetune(model, islice(batches, left), replace(objective.finetune, steps=left)):
            pass
        costs = cost_model(self.evaluator.dense.model, space)
        kept = costs.costs(allocation)
        return Result(
            model=self.model,
            method=method,
            budget=budget,
            seed=seed,
            steps=steps,
            kept=kept["macs"] / costs.dense["macs"],
            params_kept=kept["params"] / costs.dense["params"],
            before=before,
            after=self._error(model),
            ffn=_ffn_share(space, costs, allocation),
            seconds=time.perf_counter() - start,
        )

    def _cut(self, method: str, budget: str, seed: int, steps: int) -> tuple[Space, Allocation, nn.Module, Iterable[Any], int]:
        """Space, allocation, model before its fine-tune, the batches for it, and the steps that are left."""
        if method in RECIPES:
            check_reach(self.evaluator.dense, method, self._limits(budget))
            bench, cut = make_cut(self.evaluator.dense, method, self._limits(budget), seed)
            return bench.space, cut.allocation, cut.model, bench.batches, steps - bench.steps
        seed_everything(seed)
        allocation = self._allocation(method, budget)
        batches = self.evaluator.dense.batches.training(steps, seed)
        return self.evaluator.dense.space, allocation, self.evaluator.build(allocation), batches, steps

    def _allocation(self, method: str, budget: str) -> Allocation:
        space, costs = self.evaluator.dense.space, self.evaluator.dense.costs
        if method == DENSE:
            return space.identity()
        if method == UNIFORM:
            limits = self._limits(budget)
            return space.decode(1.0, lambda allocation: costs.load(allocation, limits))
        if method == START:
            return Knapsack(space, costs, self.evaluator.dense.profile.closed).allocate(self._limits(budget))
        return self._searched(budget)

    def _searched(self, budget: str) -> Allocation:
        """The best under the budget in one search of all small budgets, by the search split."""
        study = replace(
            self.config.study, target=("flops=12%",), band=0.4, trials=self.trials, output=str(RUNS / f"{self.model}-search")
        )
        directory = Path(study.output)
        if not (directory / "pareto.json").exists() or len(open_run(directory).trials) < self.trials:
            with Display(_console()) as display:
                launch(replace(self.config, study=replace(study, baselines=())), display)
        return open_run(directory).best(budget).allocation

    def _limits(self, budget: str) -> dict[Cost, float]:
        name, share = budget.rstrip("%").split("=")
        cost = "macs" if name == "flops" else "params"
        return {cost: self.evaluator.dense.costs.dense[cost] * float(share) / 100}

    def _error(self, model: nn.Module) -> float:
        return evaluate(model, self.evaluator.dense.data.evaluation("test")).error


def _console() -> Any:
    from rich.console import Console

    return Console(width=130)


def _ffn_share(space: Space, costs: Any, allocation: Allocation) -> float:
    """Share of the removed MACs that FFN branches lost; NaN where nothing was removed."""
    sites = [site.name for site in space.sites if space.roles[site.branch] == "ffn"]
    ffn = space.identity().replace({name: allocation[name] for name in sites})
    removed = costs.dense["macs"] - costs.count(allocation, "macs")
    return (costs.dense["macs"] - costs.count(ffn, "macs")) / removed if removed else math.nan


if __name__ == "__main__":
    main()
