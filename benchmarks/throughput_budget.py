"""One model under a budget, on the search and the test split: Torch-Pruning's, and the best of the naive search and of ours."""

import argparse
from collections.abc import Callable
from itertools import islice

import torch
from naive import Naive, count_macs, error_of, finetune
from ready_made import VARIANTS, library, pruned
from stages import Stages
from throughput_ours import run_of
from throughput_problems import Problem
from throughput_records import Key, Log, Record, read

from search import export, open_run
from spaces import load_compressed

BATCHES = 10  # of training images for the Taylor importance, as in the example of Torch-Pruning
MakeLog = Callable[[str, float], Log]


def compare(problem: Problem, arguments: argparse.Namespace, log_of: MakeLog, stages: Stages) -> None:
    """Measure what is not there yet."""
    budget = arguments.budget
    of_naive(problem, arguments, log_of("naive", budget), stages)
    of_ours(problem, arguments, log_of("ours", budget), stages)
    library()
    for variant in VARIANTS:
        ready_made(problem, arguments, variant, log_of(f"Torch-Pruning: {variant}", budget), stages)


def of_naive(problem: Problem, arguments: argparse.Namespace, log: Log, stages: Stages) -> None:
    """Make the naive search's best candidate again, whose seed is the same."""
    best = best_of(arguments, "naive", log.key.case)
    if best is None or log.done:
        print("" if best else "no naive search to compare with: part naive")
        return
    config = problem.finetune
    engine = Naive(problem.dense(), problem.train(), problem.split("search"), config, arguments.seed, stages)
    model, again = engine.made(best.sizes)
    log.add(best.number, again.share, again.error, stages.read(), again.sizes, error_of(model, problem.split("test")))


def of_ours(problem: Problem, arguments: argparse.Namespace, log: Log, stages: Stages) -> None:
    """Export our search's best candidate."""
    if best_of(arguments, "ours", log.key.case) is None or log.done:
        return
    run = open_run(run_of(arguments))
    trial = run.best(f"flops={arguments.budget:g}%")
    assert trial.error is not None
    model = load_compressed(export(run, trial=trial.number)).to(problem.device)
    test = error_of(model, problem.split("test"))
    log.add(trial.number, trial.kept["macs"], trial.error, stages.read(), test=test)


def best_of(arguments: argparse.Namespace, engine: str, case: str) -> Record | None:
    """The least error of a search under the budget."""
    key = Key(case=case, part="search", engine=engine)
    found = [record for record in read(arguments.output / "results.jsonl") if record.key == key]
    kept = [record for record in found if record.share <= arguments.budget / 100]
    return min(kept, key=lambda record: record.error, default=None)


def ready_made(problem: Problem, arguments: argparse.Namespace, variant: str, log: Log, stages: Stages) -> None:
    """Prune once with Torch-Pruning, and fine-tune as all others."""
    if log.done:
        return
    dense = problem.dense()
    torch.manual_seed(arguments.seed)
    some = islice(problem.train(), BATCHES)
    batches = [(images.to(problem.device), labels.to(problem.device)) for images, labels in some]
    model = pruned(dense, variant, batches, arguments.budget / 100)
    torch.manual_seed(arguments.seed)
    finetune(model, dense, problem.train(), problem.finetune, stages)
    search, test = (error_of(model, problem.split(name)) for name in ("search", "test"))
    log.add(0, count_macs(model) / count_macs(dense), search, stages.read(), test=test)
