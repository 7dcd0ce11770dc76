"""How fast searches find the front: hypervolume against paid trials and wall time, for Optuna's samplers and the engine's own.

    python benchmarks/searches.py measure --problem surrogate --seeds 0 1 2 3 4
    python benchmarks/searches.py measure --problem digits --seeds 0 1 2 3 4
    python benchmarks/fashion_mnist.py
    python benchmarks/searches.py measure --problem fmnist --checkpoint fmnist_vit.safetensors --seeds 0
    python benchmarks/searches.py report --picture search.png

Searches are appended to a file of JSON lines and never repeated, so the work can be stopped, continued and shared between
processes. `--full` makes all searches of a problem as long as the longest one, for a machine with a GPU.

The hypervolume is that of the noiseless errors on the surrogate, and of the search split's errors on the others, with the
reference point (1, 1) in share of MACs and error; `optuna`'s own hypervolume is the check. No search has a target: budgets go
from the smallest allocation to the dense model. An allocation that was tried before is proposed again, not paid for.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

import fashion_mnist
import numpy as np
import optuna
import torch
from searches_report import Search, read, report
from surrogate import Surrogate

from objectives.cost.spec import Cost
from objectives.dense_model import load_dense
from objectives.evaluator import Evaluator
from search.budgets.knapsack import Knapsack
from search.budgets.parametrisation import Budgets, Multipliers, Parametrisation, parametrise
from search.config import SearchConfig
from search.driver import demo
from search.driver.demo_options import OPTIONS
from search.samplers import candidates as draw
from search.samplers import error_posterior as posterior
from search.samplers.additive import AdditiveSampler, Screen
from search.samplers.registry import ADDITIVE, create_sampler
from search.samplers.screening import SCORE
from spaces.allocation import Allocation
from spaces.sites import Space

RUNS = Path("runs/search")
STARTS = 7  # allocations of the profile alone that searches with a warm start try first
TRIES = 50


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to search.

    `without` names constants of the engine's sampler that are set to other values; `in_flight` is how many trials run at once,
    of which the oldest always ends first.
    """

    sampler: str
    parametrisation: str = "multipliers"
    warm: bool = True
    screened: bool = False
    measured: bool = True
    in_flight: int = 1
    without: Mapping[tuple[Any, str], Any] = field(default_factory=dict)


OURS = Method(sampler=ADDITIVE, screened=True)
METHODS = {
    "ours": OURS,
    "ours, not screened": replace(OURS, screened=False),
    "ours, profile not measured": replace(OURS, measured=False),
    "ours, no warm start": replace(OURS, warm=False),
    "ours, no moves": replace(OURS, without={(draw, "_MOVES"): 0}),
    "ours, 8 in flight": replace(OURS, in_flight=8),
    "ours, 32 in flight": replace(OURS, in_flight=32),
    "ours, nothing learnt of sites": replace(OURS, without={(posterior, "MULTIPLIERS"): (1e-3,)}),
    "multipliers, TPE": Method(sampler="tpe"),
    "multipliers, NSGA-II": Method(sampler="nsga2"),
    "multipliers, random": Method(sampler="random"),
    "sizes, GP, warm start": Method(sampler="gp", parametrisation="sizes"),
    "sizes, TPE, warm start": Method(sampler="tpe", parametrisation="sizes"),
    "sizes, TPE": Method(sampler="tpe", parametrisation="sizes", warm=False),
    "sizes, NSGA-II": Method(sampler="nsga2", parametrisation="sizes", warm=False),
    "sizes, random": Method(sampler="random", parametrisation="sizes", warm=False),
}
# Problem -> method -> trials that are made of it by default, the most telling first.
DEFAULT: dict[str, dict[str, int]] = {
    "surrogate": {
        "ours": 100, "multipliers, TPE": 200, "sizes, TPE": 200, "sizes, GP, warm start": 100, "ours, no moves": 100,
        "ours, nothing learnt of sites": 100, "ours, no warm start": 100, "multipliers, random": 200,
        "multipliers, NSGA-II": 200,
        "sizes, TPE, warm start": 200, "sizes, NSGA-II": 200, "sizes, random": 200,
    },
    "digits": {
        "ours": 40, "sizes, TPE": 200, "multipliers, TPE": 100, "ours, not screened": 40, "ours, profile not measured": 40,
        "ours, no warm start": 40, "multipliers, random": 40, "sizes, NSGA-II": 200, "sizes, random": 200,
    },
    "fmnist": {
        "ours": 30, "sizes, TPE": 200, "multipliers, TPE": 60, "ours, not screened": 30, "ours, profile not measured": 30,
    },
}  # fmt: skip
DEFAULT["surrogate, noise 0.01"] = DEFAULT["surrogate"]


class Problem(Protocol):
    """What is searched."""

    space: Space
    costs: Any

    def errors(self, measured: bool) -> Any: ...

    def screen(self) -> Screen | None: ...

    def evaluate(self, allocation: Allocation, rng: np.random.Generator) -> tuple[float, float, float]:
        """Error as a trial sees it, error to be judged by, and divergence as built (NaN where it is not known)."""
        ...


class Surrogated:
    """The surrogate; nothing can be screened there."""

    def __init__(self, seed: int, noise: float) -> None:
        self._surrogate = Surrogate(seed, noise)
        self.space, self.costs = self._surrogate.space, self._surrogate.costs
        self.volume = self._surrogate.volume

    def errors(self, measured: bool) -> Any:
        return self._surrogate.profile

    def screen(self) -> Screen | None:
        return None

    def evaluate(self, allocation: Allocation, rng: np.random.Generator) -> tuple[float, float, float]:
        return self._surrogate.evaluate(allocation, rng), self._surrogate.error(allocation), float("nan")


class Trained:
    """A vision transformer, its images and a short fine-tune."""

    volume = None

    def __init__(self, config: SearchConfig, name: str) -> None:
        self._evaluator = Evaluator(load_dense(config.objective(RUNS / name)))
        self.space, self.costs = self._evaluator.dense.space, self._evaluator.dense.costs

    def errors(self, measured: bool) -> Any:
        return self._evaluator.dense.profile.errors if measured else self._evaluator.dense.profile.closed

    def screen(self) -> Screen | None:
        return self._evaluator.divergence

    def evaluate(self, allocation: Allocation, rng: np.random.Generator) -> tuple[float, float, float]:
        score = self._evaluator.evaluate(allocation, 0)
        assert score.error is not None
        return score.error, score.error, score.kl_before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "report"])
    parser.add_argument("--problem", choices=DEFAULT, default="surrogate")
    parser.add_argument("--checkpoint", default="data/fmnist_vit.safetensors", help="of the Fashion-MNIST model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="only these")
    parser.add_argument("--trials", type=int, help="of every search, in place of the default")
    parser.add_argument("--full", action="store_true", help="all methods, each as long as the longest")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RUNS / "results.jsonl")
    parser.add_argument("--picture", type=Path, help="where the report draws the curves")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if arguments.what == "report":
        report(read(arguments.output), arguments.picture)
        return
    torch.set_num_threads(arguments.threads)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    problem: Any = None
    for seed in arguments.seeds:
        for name, trials in planned(arguments):
            if any(
                (done.problem, done.method, done.seed) == (arguments.problem, name, seed) for done in read(arguments.output)
            ):
                continue
            if problem is None or arguments.problem.startswith("surrogate"):
                problem = problem_of(arguments.problem, seed, arguments)
            result = search(problem, arguments.problem, name, seed, trials)
            with arguments.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(result)) + "\n")
            print(f"{arguments.problem}, {name}, seed {seed}: {result.volume_at(trials):.4f} after {trials} trials", flush=True)


def planned(arguments: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Method and trials of every search of a problem."""
    plan = DEFAULT[arguments.problem]
    if arguments.full:
        plan = dict.fromkeys(METHODS, max(plan.values()))
    for name in arguments.methods or plan:
        yield name, arguments.trials or plan.get(name, max(plan.values()))


def problem_of(name: str, seed: int, arguments: argparse.Namespace) -> Problem:
    if name.startswith("surrogate"):
        return Surrogated(seed, float(name.rpartition(" ")[2]) if "noise" in name else 0.0)
    if name == "fmnist":
        options = {**fashion_mnist.OPTIONS, "search_size": 2000, "steps": 30, "space": "heads", "threads": arguments.threads}
        return Trained(SearchConfig.from_flat({**options, "checkpoint": arguments.checkpoint}), name)
    fixed = {"lr": 5e-4, "steps": 20, "space": "heads"}
    options = {**OPTIONS, **fixed, "output": str(RUNS / name), "threads": arguments.threads}
    return Trained(demo.with_dense_model(SearchConfig.from_flat(options), lambda what, done, total: None), name)


def search(problem: Any, problem_name: str, name: str, seed: int, trials: int) -> Search:
    """One search, as `search.study.study.Study` makes it, without its files."""
    method, rng = METHODS[name], np.random.default_rng(1000 + seed)
    limits: dict[Cost, float] = {"macs": problem.costs.dense["macs"]}
    least = problem.costs.load(problem.space.smallest(partial(problem.costs.load, limits=limits)), limits)
    budgets = Budgets(problem.space, problem.costs, [limits], [least])
    knapsack = Knapsack(problem.space, problem.costs, problem.errors(method.measured))
    parametrisation = parametrise(method.parametrisation, budgets, knapsack)
    screen = Timed(problem.screen()) if method.screened and problem.screen() else None
    study = optuna.create_study(directions=["minimize"] * 2)
    for load in np.linspace(least, 1.0, STARTS) if method.warm else ():
        study.enqueue_trial(parametrisation.encode(0, float(load)))
    running: list[tuple[optuna.Trial, Allocation]] = []
    shares, errors, seconds, proposing = list[float](), list[float](), list[float](), 0.0
    start = time.perf_counter()
    with ExitStack() as stack:
        for (module, constant), value in method.without.items():
            stack.enter_context(patch.object(module, constant, value))
        while len(errors) < trials:
            began = time.perf_counter()
            while len(running) < method.in_flight:
                running.append(propose(study, parametrisation, method.sampler, seed, screen))
            proposing += time.perf_counter() - began
            trial, allocation = running.pop(0)
            seen, judged, divergence = problem.evaluate(allocation, rng)
            share = budgets.load(allocation)
            trial.set_user_attr(SCORE, {"kl_before": divergence})
            study.tell(trial, [seen, share])
            shares.append(share)
            errors.append(judged)
            seconds.append(time.perf_counter() - start)
    screening = screen.seconds if screen else 0.0
    return Search(
        problem=problem_name,
        method=name,
        seed=seed,
        shares=shares,
        errors=errors,
        seconds=seconds,
        proposing=proposing - screening,
        screening=screening,
        best=problem.volume,
    )


class Timed:
    """A screen that knows how long it took."""

    def __init__(self, screen: Screen | None) -> None:
        assert screen is not None
        self._screen, self.seconds = screen, 0.0

    def __call__(self, allocation: Allocation) -> float:
        start = time.perf_counter()
        try:
            return self._screen(allocation)
        finally:
            self.seconds += time.perf_counter() - start


def propose(
    study: optuna.Study, parametrisation: Parametrisation, sampler: str, seed: int, screen: Screen | None
) -> tuple[optuna.Trial, Allocation]:
    """The next trial and its allocation, which is new unless none is found."""
    states = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.RUNNING
    known = {parametrisation.decode(entry.params) for entry in study.get_trials(deepcopy=False, states=states)}
    for attempt in range(TRIES):
        number = (seed * 1_000_003 + len(study.get_trials(deepcopy=False)) * TRIES + attempt) % 2**31
        study.sampler = create_sampler(sampler, number, parametrisation)
        if screen is not None:
            assert isinstance(parametrisation, Multipliers)
            study.sampler = AdditiveSampler(parametrisation, number, screen)
        trial = study.ask(parametrisation.distributions)
        allocation = parametrisation.decode(trial.params)
        if allocation not in known or attempt == TRIES - 1:
            break
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return trial, allocation


if __name__ == "__main__":
    main()
