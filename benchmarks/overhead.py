"""What a search costs besides training and evaluating: milliseconds to propose, and the share of a run's wall time.

    python benchmarks/overhead.py propose
    python benchmarks/overhead.py share --checkpoint fmnist_vit.safetensors --trials 12

*propose* asks for a trial after 100, 1,000 and 5,000 finished ones on the 48-site surrogate (benchmarks/surrogate.py): the
first time, as after a resume, when every trial is decoded; and the median of the next ones. Nothing is screened there, since
screening is evaluation. *share* runs a search on Fashion-MNIST and counts as training and evaluating what trials report as
their seconds, and the screening of candidates.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fashion_mnist
import numpy as np
import optuna
import torch
from optuna.trial import create_trial
from rich.console import Console
from surrogate import Surrogate

from objectives.evaluator import Evaluator
from search import launch
from search.budgets.knapsack import Knapsack
from search.budgets.parametrisation import Budgets, Multipliers
from search.config import SearchConfig
from search.samplers.registry import create_sampler
from search.samplers.screening import SCORE
from search.terminal.display import Display
from spaces.allocation import Allocation

FINISHED = (100, 1000, 5000)
ASKS = 7
SLOW = {"gp": 100}  # more finished trials take minutes a proposal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["propose", "share"])
    parser.add_argument("--samplers", nargs="+", default=["additive", "tpe", "nsga2", "random"])
    parser.add_argument("--checkpoint", default="data/fmnist_vit.safetensors", help="of the Fashion-MNIST model")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(arguments.threads)
    if arguments.what == "share":
        share(arguments)
        return
    print("| sampler | finished trials | first, ms | next, ms |\n|---|---|---|---|")
    for sampler in arguments.samplers:
        for finished in FINISHED:
            if finished <= SLOW.get(sampler, finished):
                first, later = propose(sampler, finished)
                print(f"| {sampler} | {finished} | {first:.0f} | {later:.0f} |", flush=True)


def propose(sampler: str, finished: int) -> tuple[float, float]:
    """Milliseconds of the first proposal and of the next ones after so many finished trials."""
    surrogate, rng = Surrogate(0, noise=0.01), np.random.default_rng(0)
    budgets = Budgets(surrogate.space, surrogate.costs, [{"macs": surrogate.costs.dense["macs"]}], [0.2])
    knapsack = Knapsack(surrogate.space, surrogate.costs, surrogate.profile)
    parametrisation = Multipliers(budgets, knapsack)
    study = optuna.create_study(directions=["minimize"] * 2)
    for _ in range(finished):
        parameters = parametrisation.name(0, rng.uniform(0.2, 1.0), rng.uniform(-1, 1, len(knapsack.sites)))
        allocation = parametrisation.decode(parameters)
        study.add_trial(_trial(parametrisation, parameters, surrogate, allocation, rng))
    times = []
    fresh = Multipliers(budgets, knapsack)  # has decoded nothing yet, as after a resume
    for number in range(ASKS):
        start = time.perf_counter()
        study.sampler = create_sampler(sampler, number, fresh)
        trial = study.ask(fresh.distributions)
        fresh.decode(trial.params)
        times.append(1000 * (time.perf_counter() - start))
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return times[0], statistics.median(times[1:])


def _trial(
    parametrisation: Multipliers, parameters: dict[str, float], surrogate: Surrogate, allocation: Allocation, rng: Any
) -> optuna.trial.FrozenTrial:
    return create_trial(
        params=parameters,
        distributions=parametrisation.distributions,
        values=[surrogate.evaluate(allocation, rng), surrogate.share(allocation)],
        user_attrs={SCORE: {"kl_before": surrogate.error(allocation)}},
    )


def share(arguments: argparse.Namespace) -> None:
    """Print how a run's wall time was spent, from its first trial to its end."""
    began, screened = [], [0.0]
    measure = Evaluator.divergence

    def timed(evaluator: Evaluator, allocation: Allocation) -> float:
        start = time.perf_counter()
        try:
            return measure(evaluator, allocation)
        finally:
            screened[0] += time.perf_counter() - start

    class Watch(Display):
        def began(self, *given: Any) -> None:
            began.append(time.perf_counter())
            super().began(*given)

    with tempfile.TemporaryDirectory() as folder, Watch(Console(width=130)) as display:
        options = {**fashion_mnist.OPTIONS, "checkpoint": arguments.checkpoint, "threads": arguments.threads}
        options |= {"target": ("flops=12%",), "band": 0.4, "trials": arguments.trials, "output": str(Path(folder) / "run")}
        with patch.object(Evaluator, "divergence", timed):
            run = launch(SearchConfig.from_flat({**options, "baselines": ["none"]}), display)
        total = time.perf_counter() - began[0]
        trained = float(run.trials["seconds"].sum())
    print(f"\n{total:.0f} s: {trained / total:.1%} in trials, {screened[0] / total:.1%} in screening", end="")
    print(f", {1 - (trained + screened[0]) / total:.1%} in everything else")


if __name__ == "__main__":
    main()
