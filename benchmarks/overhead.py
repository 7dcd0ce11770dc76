"""What a search costs besides training and evaluating: milliseconds to propose, and the share of a run's wall time.

    python benchmarks/overhead.py propose
    python benchmarks/overhead.py resume
    python benchmarks/overhead.py loop --trials 1000
    python benchmarks/overhead.py share --checkpoint fmnist_vit.safetensors --trials 12

*propose* asks for a trial after 100, 1,000 and 5,000 finished ones on the 48-site surrogate (benchmarks/surrogate.py): the
first time, as after a resume, when every trial is decoded; and the median of the next ones. Nothing is screened there, since
screening is evaluation. *resume* opens a study from a journal of 100 and 1,000 trials, each with eight candidates that were
screened for it, and asks it once. *loop* runs a whole search on the surrogate with one worker that takes no time: loop, study,
screening, journal, tables, report. All these are CPU times of the process. *share* runs a search on Fashion-MNIST and counts as
training and evaluating what trials report as their seconds, and the screening of candidates.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fashion_mnist
import numpy as np
import optuna
import torch
from optuna.trial import create_trial
from rich.console import Console
from scaling import LEAST, Watched, search, study_of
from simulated import SimulatedRunner, Sleep
from surrogate import Surrogate

from objectives.evaluator import Evaluator
from objectives.score import AsBuilt
from search import launch
from search.budgets.knapsack import Knapsack
from search.budgets.parametrisation import Budgets, Multipliers
from search.config import SearchConfig
from search.samplers.registry import create_sampler
from search.samplers.screening import SCORE
from search.terminal.display import Display
from search.trial import SCREENED, Outcome, Proposal, Trial
from spaces.allocation import Allocation

FINISHED = (100, 1000, 5000)
ASKS = 7
SLOW = {"gp": 100}  # more finished trials take minutes a proposal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["propose", "resume", "loop", "share"])
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
    if arguments.what == "resume":
        print("| finished trials | opening the study, ms | first proposal, ms |\n|---|---|---|")
        for finished in FINISHED[:2]:
            opening, first = resume(finished)
            print(f"| {finished} | {opening:.0f} | {first:.0f} |", flush=True)
        return
    if arguments.what == "loop":
        loop(arguments.trials)
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
        start = time.process_time()
        study.sampler = create_sampler(sampler, number, fresh)
        trial = study.ask(fresh.distributions)
        fresh.decode(trial.params)
        times.append(1000 * (time.process_time() - start))
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


def resume(finished: int) -> tuple[float, float]:
    """Milliseconds to open a study of so many finished trials, and of its first proposal."""
    surrogate, rng = Surrogate(0, noise=0.01), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        _write_journal(study_of(Path(folder), surrogate, "additive"), surrogate, finished, rng)
        start = time.process_time()
        study = study_of(Path(folder), surrogate, "additive")
        opened = time.process_time()
        study.ask()
        return 1000 * (opened - start), 1000 * (time.process_time() - opened)


def _write_journal(study: Watched, surrogate: Surrogate, finished: int, rng: np.random.Generator) -> None:
    """Trials of random multipliers, each chosen from itself and seven others."""
    parametrisation = study.parametrisation
    assert isinstance(parametrisation, Multipliers)

    def drawn() -> dict[str, float]:
        return parametrisation.name(0, rng.uniform(LEAST, 1.0), rng.uniform(-1, 1, len(parametrisation.knapsack.sites)))

    for number in range(finished):
        parameters = drawn()
        allocation = parametrisation.decode(parameters)
        proposal = Proposal(number=number, allocation=allocation, space="surrogate", seed=0, parameters=parameters)
        outcome = Sleep(1.0, 0.0, surrogate).result(proposal)
        assert isinstance(outcome, Outcome) and outcome.score is not None
        score = replace(outcome.score, error=min(max(outcome.score.error or 0.0, 0.0), 1.0))
        screened = [(parameters, score.kl_before), *((drawn(), rng.uniform(0.1, 1.0)) for _ in range(7))]
        trial = Trial(proposal=proposal, score=score, reason=None, ended="2026-11-27T00:00:00+00:00")
        values = [float(score.error or 0.0), float(score.costs["macs"])]
        study.journal.append(trial, values, parametrisation.distributions, {SCREENED: screened})


def loop(trials: int) -> None:
    """Print CPU milliseconds of the driver per trial: of the whole search, and of its last hundred trials."""
    parts = {"ask": 1, "choose": 1, "tell": 1, "views": 2}  # and how often each is called for a trial

    def timed(study: Watched, name: str, call: Any, *given: Any) -> Any:
        start = time.process_time()
        try:
            return call(*given)
        finally:
            study.times[name].append(1000 * (time.process_time() - start))

    with patch.object(Watched, "timed", timed):
        study = search(SimulatedRunner(1, Sleep(0.0, 0.0, Surrogate(0, noise=0.01))), trials, None)
    print(f"| trials | {' | '.join(parts)} | loop |\n|---|{'---|' * (len(parts) + 1)}")
    whole = [sum(study.times[name]) / trials for name in (*parts, "loop")]
    print(f"| all {trials} | {' | '.join(f'{each:.1f}' for each in whole)} |")
    last = [sum(study.times[name][-100 * calls :]) / 100 for name, calls in parts.items()]
    print(f"| the last 100 | {' | '.join(f'{each:.1f}' for each in last)} | |")


def share(arguments: argparse.Namespace) -> None:
    """Print how a run's wall time was spent, from its first trial to its end."""
    began, screened = [], [0.0]
    measure = Evaluator.as_built

    def timed(evaluator: Evaluator, allocation: Allocation) -> AsBuilt:
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
        with patch.object(Evaluator, "as_built", timed):
            run = launch(SearchConfig.from_flat({**options, "baselines": ["none"]}), display)
        total = time.perf_counter() - began[0]
        trained = float(run.trials["seconds"].sum())
    print(f"\n{total:.0f} s: {trained / total:.1%} in trials, {screened[0] / total:.1%} in screening", end="")
    print(f", {1 - (trained + screened[0]) / total:.1%} in everything else")


if __name__ == "__main__":
    main()
