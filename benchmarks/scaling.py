"""How a search scales with its workers: how busy they are kept, what the driver costs, and what parallel proposals cost.

    python benchmarks/scaling.py simulated --workers 64 --seconds 30
    PYTHONPATH=tests python benchmarks/scaling.py simulated --workers 64 --seconds 30 --storage postgresql
    python benchmarks/scaling.py views
    python benchmarks/scaling.py ray --workers 8 --seconds 3
    python benchmarks/scaling.py ray --workers 8 --seconds 0
    python benchmarks/scaling.py real --workers 1 2 --seeds 0 1 2
    python benchmarks/scaling.py quality --workers 1 2 8 32 --seeds 0 1 2 3 4

*simulated* runs the loop, the study with the additive sampler and its screening, the storage and the tables as a search does,
on the 48-site surrogate; only the workers sleep. *views* times tables, report and weights after many trials. *ray* has actors
that sleep. *real* searches the digits demo. *quality* compares hypervolumes of simulated searches.

Efficiency is the share of the workers' time in which they had a job: over the whole run from the first submission to the last
end, and in the steady state, between the moment when all have work and the last submission.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from rich.console import Console
from simulated import SPREAD, SimulatedRunner, Sleep, Sleeper, Span
from surrogate import DENSE_ERROR, REFERENCE, Surrogate

from objectives.data.config import DataConfig
from objectives.objective import Objective
from search.budgets.knapsack import Knapsack
from search.budgets.parametrisation import Budgets, Multipliers
from search.config import SearchConfig
from search.driver import demo
from search.driver.demo_options import OPTIONS
from search.driver.launch import launch
from search.driver.loop import Loop
from search.driver.observer import Observer, Observers
from search.driver.publisher import Publisher
from search.layout import WEIGHTS
from search.pareto import hypervolume
from search.run.summary import DenseFigures, RunSummary
from search.runners.base import Listener, Runner
from search.runners.resources import MachineConfig
from search.study.study import Study
from search.terminal.display import Display
from search.trial import Ended, Job, Outcome, Proposal, Screening, Trial
from spaces.allocation import Allocation
from spaces.models.create import ModelConfig

OBJECTIVES = ("error", "macs")
LEAST, STARTS = 0.2, 7  # the lowest budget, and allocations of the profile alone that are tried first


class Watched(Study):
    """A study that notes how long each call took, in milliseconds."""

    def __init__(self, *given: Any, **options: Any) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)
        super().__init__(*given, **options)

    def timed(self, name: str, call: Callable[..., Any], *given: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*given)
        finally:
            self.times[name].append(1000 * (time.perf_counter() - start))

    def ask(self) -> Proposal | Screening | None:
        return self.timed("ask", super().ask)  # type: ignore[no-any-return]

    def choose(self, number: int, divergences: Sequence[float]) -> Proposal | Screening | None:
        return self.timed("choose", super().choose, number, divergences)  # type: ignore[no-any-return]

    def tell(self, outcome: Outcome) -> Trial:
        return self.timed("tell", super().tell, outcome)  # type: ignore[no-any-return]


class Spans:
    """A runner of sleeping actors that notes when they slept: until a job's end was seen here, for as long as it takes."""

    def __init__(self, runner: Runner, sleep: Sleep) -> None:
        self.runner, self.sleep, self.spans = runner, sleep, list[Span]()
        self._jobs: dict[int, Job] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)

    def submit(self, job: Job, folder: Path) -> None:
        self._jobs[job.number] = job
        self.runner.submit(job, folder)

    def wait(self, timeout: float = 1.0) -> Ended | None:
        ended = self.runner.wait(timeout)
        if ended is not None:
            job, now = self._jobs.pop(ended.number), time.monotonic()
            self.spans.append((now - self.sleep.duration(job), now, isinstance(job, Proposal)))
        return ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["simulated", "views", "ray", "real", "quality"])
    parser.add_argument("--workers", type=int, nargs="+", default=[64])
    parser.add_argument("--seconds", type=float, default=30.0, help="of a trial")
    parser.add_argument("--screening", type=float, default=1.0, help="seconds of a screening, where it is less than a trial")
    parser.add_argument("--trials", type=int, help="in all; by default four for every worker")
    parser.add_argument("--storage", help="URL, or postgresql for a server that is started here; a journal file without")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    {"simulated": simulated, "views": views, "ray": on_ray, "real": real, "quality": quality}[arguments.what](arguments)
    print(f"load average at the end: {os.getloadavg()[0]:.1f}, over 5 minutes {os.getloadavg()[1]:.1f}")


def simulated(arguments: argparse.Namespace) -> None:
    for workers in arguments.workers:
        with storage(arguments.storage) as url:
            runner = SimulatedRunner(workers, sleep_of(arguments))
            study = search(runner, arguments.trials or 4 * workers, url)
        describe(workers, arguments, runner.spans, study)


def on_ray(arguments: argparse.Namespace) -> None:
    from search.runners.ray_actors import RayRunner

    nothing = Objective(model=ModelConfig(model="none"), data=DataConfig(dataset="digits"), factors=Path("none/factors"))
    for workers in arguments.workers:
        sleep, start = sleep_of(arguments), time.monotonic()
        actor = type("Sleeping", (Sleeper,), {"sleep": sleep})
        runner = RayRunner(nothing, MachineConfig(parallel=workers, device="cpu", threads=1), Listener(), actor)
        runner.prepare(())
        while len(runner.devices) < workers:
            runner.wait()
        print(f"{workers} actors were ready after {time.monotonic() - start:.0f} s")
        if arguments.seconds == 0:
            path_of_actors(runner, arguments.trials or 2000)
        else:
            watched = Spans(runner, sleep)
            study = search(watched, arguments.trials or 4 * workers, None)
            describe(workers, arguments, watched.spans, study)
        runner.close()


def path_of_actors(runner: Runner, trials: int) -> None:
    """Print what a trial costs that takes no time, without a study: submitting, running and taking its outcome."""
    surrogate, numbers, done = Surrogate(0), iter(range(trials)), 0
    job = Proposal(number=0, allocation=surrogate.space.identity(), space="surrogate", seed=0)
    start = time.perf_counter()
    while done < trials:
        while runner.free and (number := next(numbers, None)) is not None:
            runner.submit(replace(job, number=number), Path("none"))
        done += runner.wait() is not None
    seconds = time.perf_counter() - start
    print(f"{trials / seconds:.0f} trials of 0 s a second: {1000 * seconds / trials:.1f} ms each")


def views(arguments: argparse.Namespace) -> None:
    """Print what it takes to write the tables, keep the weights and render the report after many trials."""
    sleep = sleep_of(arguments)
    print("| trials | on the front | tables and weights, ms | report, ms |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        study = study_of(Path(folder), sleep.surrogate, "random")
        shown = Publisher(study, facts_of(sleep.surrogate), None)
        for trials in (100, 300, 1000, 3000):
            while len(study.trials) < trials:
                tell_next(study, sleep, shown)
            shown.update()
            times: dict[str, list[float]] = defaultdict(list)
            for _ in range(9):
                tell_next(study, sleep, shown)
                study.timed("tables", shown.update)
                study.timed("report", shown.write_report)
                for name in ("tables", "report"):
                    times[name].append(study.times[name][-1])
            tables, report = (statistics.median(times[name]) for name in ("tables", "report"))
            print(f"| {trials} | {len(shown.summary.front)} | {tables:.0f} | {report:.0f} |", flush=True)


def tell_next(study: Watched, sleep: Sleep, shown: Publisher) -> None:
    """One trial, with an empty file of weights."""
    job = study.ask()
    assert isinstance(job, Proposal)
    outcome = sleep.result(job)
    assert isinstance(outcome, Outcome)
    (study.folder(job.number) / WEIGHTS).touch()
    shown.ended(study.tell(outcome))


class Starts(Display):
    """Notes when trials were started."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.times: list[float] = []

    def started(self, proposal: Proposal) -> None:
        self.times.append(time.monotonic())


def real(arguments: argparse.Namespace) -> None:
    """Print trials per minute on the digits demo, one thread for every worker, while all workers are busy."""
    print("| seed | workers | trials a minute | hypervolume |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        options = {
            **OPTIONS,
            "lr": 5e-4,
            "runner": "ray",
            "trials": arguments.trials or 24,
            "output": str(Path(folder) / "dense"),
        }
        config = demo.with_dense_model(SearchConfig.from_flat(options), lambda what, done, total: None)
        for seed in arguments.seeds:
            for workers in arguments.workers:
                study = replace(config.study, seed=seed, output=str(Path(folder) / f"{seed}-{workers}"))
                machines = replace(config.machines, parallel=workers)
                with Starts() as starts:
                    run = launch(replace(config, study=study, machines=machines), starts)
                began = starts.times[2 * max(arguments.workers) :]  # without those that waited for workers to get ready
                pace = 60 * (len(began) - 1) / (began[-1] - began[0])
                print(f"| {seed} | {workers} | {pace:.1f} | {run.summary.hypervolume:.4f} |", flush=True)


def quality(arguments: argparse.Namespace) -> None:
    """Print the hypervolume, as a share of the best front known, of searches with more or fewer workers."""
    trials = arguments.trials or 60
    print(f"| workers | median of {len(arguments.seeds)} seeds after {trials} trials | least | most |\n|---|---|---|---|")
    for workers in arguments.workers:
        found = []
        for seed in arguments.seeds:
            sleep = Sleep(0.05 * workers, 0.005 * workers, Surrogate(seed, noise=0.01))
            study = search(SimulatedRunner(workers, sleep), trials, None)
            points = [(sleep.surrogate.share(each), sleep.surrogate.error(each)) for each in allocations(study)]
            found.append(hypervolume(points, REFERENCE) / sleep.surrogate.volume)
        print(f"| {workers} | {statistics.median(found):.4f} | {min(found):.4f} | {max(found):.4f} |", flush=True)


def allocations(study: Study) -> Iterator[Allocation]:
    for trial in study.trials:
        assert trial.proposal.allocation is not None
        yield trial.proposal.allocation


def sleep_of(arguments: argparse.Namespace) -> Sleep:
    return Sleep(arguments.seconds, min(arguments.screening, arguments.seconds / 10), Surrogate(0, noise=0.01))


def search(runner: Any, trials: int, url: str | None) -> Watched:
    """A search as `search.driver.session` makes it."""
    surrogate = runner.sleep.surrogate
    with tempfile.TemporaryDirectory() as folder:
        study = study_of(Path(folder), surrogate, "additive", url)
        for load in np.linspace(LEAST, 1.0, STARTS):  # the warm start
            parameters = study.parametrisation.encode(0, float(load))
            study.enqueue(f"start {load:.2f}", study.parametrisation.decode(parameters), parameters)
        shown = Timed(study, facts_of(surrogate), None, at_once=runner.workers == 1)
        shown.write_tables()
        loop = Loop(study, runner, trials, lambda: False, Observers([shown, Prints()]))
        study.timed("loop", loop.run)
        study.close()
    return study


class Timed(Publisher):
    """Has its study note how long the writing of tables took."""

    def waiting(self) -> None:
        self._study.timed("views", super().waiting)  # type: ignore[attr-defined]


class Prints(Observer):
    """Prints what a person should know."""

    def notice(self, text: str) -> None:
        print(text)


def study_of(folder: Path, surrogate: Surrogate, sampler: str, url: str | None = None) -> Watched:
    budgets = Budgets(surrogate.space, surrogate.costs, [{"macs": surrogate.costs.dense["macs"]}], [LEAST])
    knapsack = Knapsack(surrogate.space, surrogate.costs, surrogate.profile)
    return Watched(folder, Multipliers(budgets, knapsack), OBJECTIVES, sampler, 0, True, url)


def facts_of(surrogate: Surrogate) -> RunSummary:
    dense = surrogate.costs.dense
    return RunSummary(
        model="surrogate",
        classes=10,
        fingerprint="",
        space="surrogate",
        spaces={"surrogate": surrogate.space},
        dense=DenseFigures(costs=dense, error=DENSE_ERROR),
        split_before="search",
        reach={cost: (LEAST * count, count) for cost, count in dense.items()},
        objectives=OBJECTIVES,
        targets=(),
    )


@contextmanager
def storage(name: str | None) -> Iterator[str | None]:
    if name != "postgresql":
        yield name
        return
    from local_servers import postgresql  # of the tests

    with postgresql() as server:
        yield server.url


def describe(workers: int, arguments: argparse.Namespace, spans: Sequence[Span], study: Watched) -> None:
    """Print the figures of one run."""
    trials, first, last = len(study.trials), min(span[0] for span in spans), max(span[1] for span in spans)
    full, drained = sorted(span[0] for span in spans)[workers - 1], max(span[0] for span in spans)
    whole, steady = efficiency(spans, workers, first, last), efficiency(spans, workers, full, drained)
    work = [sum(study.times[name]) for name in ("ask", "choose", "tell", "views")]
    print(
        f"{workers} workers, trials of {arguments.seconds:g} s +-{SPREAD:.0%}, {arguments.storage or 'journal file'}: "
        f"{trials} trials and {sum(not trial for *_, trial in spans)} screenings in {last - first:.1f} s\n"
        f"  efficiency {whole:.3f} of the whole run, {steady:.3f} in the steady state\n"
        f"  driver: {sum(work) / trials:.0f} ms a trial (ask {work[0] / trials:.0f}, choose {work[1] / trials:.0f}, "
        f"tell {work[2] / trials:.0f}, views {work[3] / trials:.0f}), {sum(work) / study.times['loop'][0]:.0%} of its time"
    )
    for name in ("ask", "choose", "tell"):
        times = sorted(study.times[name])
        middle, high = statistics.median(times), times[int(0.95 * (len(times) - 1))]
        print(f"  {name}: median {middle:.1f} ms, 95 % {high:.1f} ms, longest {times[-1]:.1f} ms, {len(times)} times")


def efficiency(spans: Sequence[Span], workers: int, begin: float, end: float) -> float:
    """Share of the workers' time within an interval in which they had a job."""
    busy = sum(max(0.0, min(last, end) - max(first, begin)) for first, last, _ in spans)
    return busy / (workers * (end - begin))


if __name__ == "__main__":
    main()
