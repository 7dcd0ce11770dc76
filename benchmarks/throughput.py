"""Candidates an hour, time to a front, and where each second goes: the engine beside a naive search (benchmarks/naive.py).

    python benchmarks/fashion_mnist.py
    python benchmarks/throughput.py all --data fmnist --checkpoint fmnist_vit.safetensors --steps 40
    python benchmarks/throughput.py all --data digits --steps 20
    python benchmarks/throughput.py candidates --data random --model vit_small_patch16_224 --device cuda --steps 100
    python benchmarks/throughput.py report

*naive* searches with the naive engine, *ours* with `launch`, both over all budgets. *candidates* evaluates candidates of about
the same cost with both, turn by turn, each time in a new process. *budget* makes a model under a budget with Torch-Pruning
(`pip install torch-pruning`) and sets it beside the best of both searches. *all* does all of these. What is measured is
appended to a file of JSON lines at once and never measured again, so the work may be stopped, continued and done part by part.

Both engines give every candidate the same fine-tune: loss, optimiser, schedule, steps, batch size, images and augmentation.
CPU seconds are those of the whole process since its start and of the loaders that it has ended: with imports, dense model,
factors and proposing; stages are of the process alone. On a GPU, times by stage are wall times with the GPU's work done.
"""

import stages  # isort: skip  # looks at the clock before the slow imports

import argparse
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from throughput_records import Key, Log, read

if TYPE_CHECKING:
    from throughput_problems import Problem

PARTS = ("naive", "ours", "candidates", "budget")
ENGINES = ("naive", "ours")
UNIFORM = (0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9)  # first trials of --uniform, as many as the engine's


def main() -> None:
    arguments = parsed()
    if arguments.part == "report":
        from throughput_report import report

        report(read(arguments.output / "results.jsonl"))
    elif arguments.part == "all":
        for part in PARTS:
            started(part)
    elif arguments.part == "candidates":
        for options in turns(arguments):
            started(*options)
    else:
        run(arguments)


def started(part: str, *options: str) -> None:
    """Do a part with these further options in a new process.

    Raises:
        SystemExit: it failed; it has said why.
    """
    given = [part if argument in (*PARTS, "all") else argument for argument in sys.argv[1:]]
    if status := subprocess.run([sys.executable, __file__, *given, *options]).returncode:
        raise SystemExit(status)


def run(arguments: argparse.Namespace) -> None:
    """One part in this process."""
    import optuna
    import torch
    from throughput_problems import is_prepared, prepare, problem_of

    torch.set_num_threads(arguments.threads)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    problem = problem_of(arguments)
    if arguments.part == "prepare":
        prepare(problem, arguments.tiny)
        return
    if not is_prepared(problem):  # in processes of their own: this one's seconds are measured
        started("prepare")
        if is_prepared(problem):
            started(arguments.part)
    elif arguments.part == "naive":
        naive(arguments, problem)
    elif arguments.part == "ours":
        from throughput_ours import ours

        ours(problem, arguments, log_of(arguments), meter(arguments))
    else:
        from throughput_budget import compare

        compare(problem, arguments, partial(log_of, arguments), meter(arguments))


def naive(arguments: argparse.Namespace, problem: "Problem") -> None:
    """Trials of the naive engine up to the number that is wanted; under a budget, the same candidate again and again."""
    from naive import Measured, Naive, uniform

    log, meter_ = log_of(arguments, "naive, uniform start" if arguments.uniform else "naive"), meter(arguments)
    with meter_.stage("preparation"):
        dense, train, search = problem.dense(), problem.train(), problem.split("search")
    starts = UNIFORM[len(log.done) :] if arguments.uniform else ()
    engine = Naive(dense, train, search, problem.finetune, arguments.seed, meter_, starts)
    engine.resume(Measured(sizes=record.sizes, share=record.share, error=record.error) for record in log.done)
    with meter_.stage("sizes under the budget"):
        sizes = None if arguments.limit is None else uniform(dense, arguments.limit / 100)
    for number in range(len(log.done), arguments.trials):
        measured = engine.trial() if sizes is None else engine.evaluate(sizes)
        log.add(number, measured.share, measured.error, meter_.read(), measured.sizes)


def turns(arguments: argparse.Namespace) -> Iterator[list[str]]:
    """Options of the processes that evaluate candidates, the engines in turn; without those that are done."""
    for turn in range(arguments.turns):
        for limit in arguments.budgets:
            for engine in ENGINES:
                key = Key(case=case_of(arguments), part="candidates", engine=engine, budget=limit, turn=turn)
                found = [record.number for record in read(arguments.output / "results.jsonl") if record.key == key]
                if max(found, default=-1) < arguments.count - 1:
                    yield [engine, "--trials", str(arguments.count), "--limit", str(limit), "--turn", str(turn)]


def log_of(arguments: argparse.Namespace, engine: str | None = None, budget: float | None = None) -> Log:
    """Where this process writes what it measures."""
    part = "budget" if budget else "search" if arguments.limit is None else "candidates"
    budget = budget or arguments.limit
    key = Key(case=case_of(arguments), part=part, engine=engine or arguments.part, budget=budget, turn=arguments.turn)
    return Log(arguments.output / "results.jsonl", key, resumed=part != "candidates")


def case_of(arguments: argparse.Namespace) -> str:
    """What all engines have in common, in words."""
    model = f" {arguments.model}" if arguments.data == "random" else ""
    return f"{arguments.data}{model}, {arguments.steps} steps, {arguments.device}, seed {arguments.seed}"


def meter(arguments: argparse.Namespace) -> stages.Stages:
    """Times of this process by stage."""
    return stages.Stages(stages.cpu_seconds if arguments.device == "cpu" else stages.gpu_seconds)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["all", *PARTS, "prepare", "report"])
    parser.add_argument("--data", choices=["digits", "fmnist", "random"], default="fmnist")
    parser.add_argument("--data-dir", default="data", help="where Fashion-MNIST is")
    parser.add_argument("--checkpoint", default="data/fmnist_vit.safetensors", help="of the Fashion-MNIST model")
    parser.add_argument("--model", default="vit_small_patch16_224", help="for random pictures; its weights are random")
    parser.add_argument("--steps", type=int, default=40, help="of every fine-tune")
    parser.add_argument("--trials", type=int, help="of a search: 100 of the naive one, 30 of ours")
    parser.add_argument("--uniform", action="store_true", help="the naive search begins with all layers cut alike")
    parser.add_argument("--budgets", type=float, nargs="+", default=[12, 50], help="of the candidates, in %% of the MACs")
    parser.add_argument("--count", type=int, default=5, help="candidates of an engine, a budget and a turn")
    parser.add_argument("--turns", type=int, default=3, help="of the engines at candidates")
    parser.add_argument("--budget", type=float, default=50, help="that one model is made for, in %% of the MACs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/throughput"), help="folder of results and runs")
    parser.add_argument("--tiny", action="store_true", help="a check of the script in seconds; figures mean nothing")
    parser.add_argument("--limit", type=float, help=argparse.SUPPRESS)  # % of the MACs that all candidates have
    parser.add_argument("--turn", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.data, arguments.steps, arguments.count, arguments.turns = "digits", 2, 2, 1
        arguments.trials = arguments.trials or 4
    arguments.trials = arguments.trials or (100 if arguments.part == "naive" else 30)
    return arguments


if __name__ == "__main__":
    main()
