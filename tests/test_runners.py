"""Every runner keeps the same law: what runs in this process runs on Ray's workers and in Ray Tune alike, to the bit."""

import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
from local_digits import DATA, MODEL, evaluator_of
from local_launches import FRAMES, Silent, config_of
from local_patience import poll
from local_vits import cut

from objectives.dense_model import load_dense
from objectives.error import Evaluation
from objectives.evaluator import Evaluator
from objectives.runtime.progress import Step
from objectives.score import Score
from objectives.training.config import FinetuneConfig
from search import launch
from search.layout import METRICS, STDERR, WEIGHTS
from search.run.trial_table import EXPECTED
from search.runners.base import Listener, Runner
from search.runners.in_process import InProcessRunner
from search.runners.job import compute
from search.runners.ray_actors import RayRunner
from search.runners.resources import MachineConfig
from search.runners.tune import TuneRunner
from search.trial import Ended, Job, Outcome, Proposal, Screened, Screening
from spaces.allocation import Allocation
from spaces.errors import AllocationError
from spaces.models.create import create_model

pytestmark = pytest.mark.slow

STEPS, RUNG = 60, 30
MACHINES = MachineConfig(parallel=2, threads=1)


@dataclass
class Place:
    """A runner that was prepared, what it told, and who answers at its rungs."""

    directory: Path
    runner: Runner = field(init=False)
    stages: list[str] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)
    asked: list[tuple[int, int, int]] = field(default_factory=list)  # number, step, thread
    answer: Callable[[int], str | None] = lambda number: None

    @property
    def listener(self) -> Listener:
        return Listener(stage=self._stage, measured=self._measured, step=self._step, at_rung=self._rung)

    def _stage(self, what: str, done: int, total: int) -> None:
        self.stages.append(what)

    def _measured(self) -> None:
        """The figures can be read by whoever is told that they are there."""
        (path,) = self.directory.glob("factors/*.dense.json")
        assert Evaluation.load(path).confusion
        self.stages.append("measured")

    def _step(self, number: int, step: Step) -> None:
        self.steps.append((number, step.step))

    def _rung(self, proposal: Proposal, step: int, error: float) -> str | None:
        self.asked.append((proposal.number, step, threading.get_ident()))
        return self.answer(proposal.number)

    @property
    def session(self) -> Path:
        """Where the Ray that was started for it keeps its files."""
        assert isinstance(self.runner, RayRunner | TuneRunner)
        scratch = self.runner.connection.scratch
        assert scratch is not None
        return scratch.path

    def folder(self, number: int) -> Path:
        return self.directory / "trials" / f"{number:04d}"

    def run(self, *jobs: Job, limit: float | None = None) -> dict[int, Ended]:
        """What the jobs came to, begun as there is room for them."""
        waiting, ended, limit_before = list(jobs), dict[int, Ended](), self.runner.limit
        self.runner.limit = limit
        while len(ended) < len(jobs):
            while waiting and self.runner.free:
                job, free = waiting.pop(0), self.runner.free
                self.runner.submit(job, self.folder(job.number))
                assert self.runner.free == free - 1
            found = self.runner.wait(0.1)
            if found is not None:
                ended[found.number] = found
        self.runner.limit = limit_before
        return ended

    def idle(self) -> bool:
        """Whether all workers get free."""

        def free() -> bool:
            assert self.runner.wait(0.1) is None
            return self.runner.free == self.runner.workers

        return self.runner.free == self.runner.workers or poll(free, pause=0.0)

    def outcome(self, proposal: Proposal, limit: float | None = None) -> Outcome:
        outcome = self.run(proposal, limit=limit)[proposal.number]
        assert isinstance(outcome, Outcome)
        return outcome


def proposal(number: int, allocation: Allocation, seed: int = 0) -> Proposal:
    return Proposal(number=number, allocation=allocation, space="contract", seed=seed)


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    """What every runner is compared with."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    finetune = FinetuneConfig(steps=STEPS, lr=3e-3)
    return evaluator_of(
        create_model(MODEL), tmp_path_factory.mktemp("runs"), data=DATA, finetune=finetune, rungs=(RUNG / STEPS,)
    )


@pytest.fixture(scope="module")
def allocations(evaluator: Evaluator) -> list[Allocation]:
    """A small one, a medium one, and the dense model."""
    return [
        cut(evaluator.dense.space, lambda site, share=share: site.choices[int(share * (len(site.choices) - 1))])  # type: ignore[misc]
        for share in (0, 0.5, 1)
    ]


@pytest.fixture(scope="module")
def expected(evaluator: Evaluator, allocations: list[Allocation]) -> list[Score]:
    torch.set_num_threads(1)
    return [evaluator.evaluate(allocation, seed=0, on_rung=lambda step, error: False) for allocation in allocations]


@pytest.fixture(scope="module", params=["in-process", "ray", "tune"])
def place(request: pytest.FixtureRequest, evaluator: Evaluator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    torch.set_num_threads(1)
    place = Place(directory=tmp_path_factory.mktemp("place") / "run")
    place.directory.mkdir()
    objective = replace(evaluator.dense.objective, factors=place.directory / "factors")
    here = Evaluator(load_dense(objective, place.listener.stage))
    if request.param == "in-process":
        place.runner = InProcessRunner(here, place.listener)
    elif request.param == "ray":
        place.runner = RayRunner(objective, MACHINES, place.listener)
    else:
        place.runner = TuneRunner(objective, here, MACHINES, place.listener)
    try:
        place.runner.prepare(("factors",))
        yield place
    finally:
        place.runner.close()


@pytest.fixture(autouse=True)
def _fresh(request: pytest.FixtureRequest) -> None:
    if "place" in request.fixturenames:
        place: Place = request.getfixturevalue("place")
        place.answer = lambda number: None
        place.steps.clear()
        place.asked.clear()


def alone(place: Place) -> bool:
    return isinstance(place.runner, InProcessRunner)


def test_preparing_leaves_what_trials_share(place: Place, evaluator: Evaluator) -> None:
    compute(evaluator.dense, ("factors",))
    there = {path.name for path in evaluator.dense.objective.factors.rglob("*")}
    assert {path.name for path in (place.directory / "factors").rglob("*")} == there != set()
    assert place.stages.index("dense model") < place.stages.index("measured") < place.stages.index("factors")
    assert place.runner.devices
    assert all("cpu" in device for device in place.runner.devices)
    assert place.runner.workers == (1 if alone(place) else 2)


def test_workers_run_at_the_niceness_of_who_started_them(place: Place) -> None:
    """Ray's own default is 15 more: whatever else runs on the machine would go before."""
    workers = [psutil.Process(pid) for pid in children()]
    named = [worker for worker in workers if re.search("ray::(Worker|.*Trainable)", " ".join(worker.cmdline()))]
    assert bool(named) is not alone(place)
    assert {worker.nice() for worker in named} <= {os.getpriority(os.PRIO_PROCESS, 0)}


def test_a_forecast_is_made_where_trials_run(place: Place, allocations: list[Allocation], expected: list[Score]) -> None:
    forecast = place.runner.forecast(allocations[0])
    assert forecast.parts == 1
    assert forecast.weights >= 4 * expected[0].costs["params"]
    assert forecast.seconds > STEPS * forecast.step > 0


def test_scores_are_those_of_one_process(place: Place, allocations: list[Allocation], expected: list[Score]) -> None:
    ended = place.run(*(proposal(number, allocation) for number, allocation in enumerate(allocations)))
    assert place.idle()
    for number, score in enumerate(expected):
        outcome = ended[number]
        assert isinstance(outcome, Outcome)
        assert outcome.score is not None
        assert (outcome.reason, outcome.lost, outcome.allocation) == (None, False, allocations[number])
        assert asdict(outcome.score) | {"seconds": 0} == asdict(score) | {"seconds": 0}
        rows = [json.loads(line) for line in (place.folder(number) / METRICS).read_text().splitlines()]
        assert [row.get("step") for row in rows] == [*range(1, STEPS + 1), None]
        assert rows[-1]["error"] == score.error
        assert (place.folder(number) / WEIGHTS).stat().st_size > 4 * score.costs["params"]
    assert sorted(place.asked) == [(number, RUNG, threading.get_ident()) for number in range(3)]
    assert {number for number, _ in place.steps} == {0, 1, 2}


def test_candidates_are_screened_alike(place: Place, evaluator: Evaluator, allocations: list[Allocation]) -> None:
    screened = place.run(Screening(number=10, candidates=tuple(allocations[:2])))[10]
    assert isinstance(screened, Screened)
    assert screened.divergences == tuple(evaluator.divergence(allocation) for allocation in allocations[:2])
    assert place.idle()


def test_a_trial_that_raises_is_an_outcome(place: Place, allocations: list[Allocation]) -> None:
    outcome = place.outcome(proposal(20, allocations[0], seed=1 << 70))
    assert (outcome.score, outcome.lost) == (None, False)
    assert outcome.reason
    assert "Traceback" in (place.folder(20) / STDERR).read_text()
    assert place.outcome(proposal(21, allocations[0])).score is not None


def test_a_trial_is_stopped_at_a_rung(place: Place, allocations: list[Allocation], expected: list[Score]) -> None:
    place.answer = lambda number: "no good" if number == 30 else None
    ended = place.run(proposal(30, allocations[0]), proposal(31, allocations[0]))
    stopped, whole = ended[30], ended[31]
    assert isinstance(stopped, Outcome) and isinstance(whole, Outcome)
    assert stopped.score is not None and whole.score is not None
    assert stopped.reason == "no good"
    assert (stopped.score.error, stopped.score.rungs) == (None, expected[0].rungs)
    assert whole.reason is None
    assert whole.score.error == expected[0].error


def test_a_worker_that_is_killed_loses_its_trial_alone(place: Place, allocations: list[Allocation]) -> None:
    if alone(place):
        pytest.skip("there is no other process")
    place.answer = lambda number: os.kill(writer(place.folder(40) / METRICS), signal.SIGKILL) if number == 40 else None
    outcome = place.outcome(proposal(40, allocations[0]))
    assert (outcome.score, outcome.lost) == (None, True)
    assert "its worker was lost (pid " in (outcome.reason or "")
    assert (outcome.reason or "-") in (place.folder(40) / STDERR).read_text()
    place.answer = lambda number: None
    assert place.outcome(proposal(40, allocations[0])).score is not None


def test_an_idle_worker_that_is_killed_is_replaced(place: Place, allocations: list[Allocation]) -> None:
    if alone(place):
        pytest.skip("there is no other process")
    pids: list[int] = []
    place.answer = lambda number: pids.append(writer(place.folder(number) / METRICS))
    assert place.outcome(proposal(45, allocations[0])).score is not None
    os.kill(pids[0], signal.SIGKILL)
    place.answer = lambda number: None
    outcomes = [place.outcome(proposal(number, allocations[0])) for number in (46, 46, 46)]
    assert all(outcome.lost for outcome in outcomes if outcome.score is None)
    assert outcomes[-1].score is not None


def test_a_trial_beyond_the_limit_is_ended(place: Place, allocations: list[Allocation]) -> None:
    outcome = place.outcome(proposal(50, allocations[2]), limit=0.1)
    assert outcome.score is None
    assert outcome.lost is not alone(place)
    assert "the limit is 0 s" in (outcome.reason or "")
    assert (place.folder(50) / STDERR).exists()
    assert place.outcome(proposal(51, allocations[0])).score is not None


def test_a_worker_that_does_nothing_any_more_is_replaced(place: Place, allocations: list[Allocation]) -> None:
    """Not even say where it hangs."""
    if alone(place):
        pytest.skip("there is no other process")
    place.answer = lambda number: os.kill(writer(place.folder(55) / METRICS), signal.SIGSTOP) if number == 55 else None
    outcome = place.outcome(proposal(55, allocations[0]), limit=5.0)
    assert (outcome.score, outcome.lost) == (None, True)
    assert re.search(r"it hung: not done after \d+ s, the limit is 5 s", outcome.reason or "")
    place.answer = lambda number: None
    assert place.outcome(proposal(55, allocations[0])).score is not None


def test_what_concerns_every_trial_is_raised(place: Place, allocations: list[Allocation]) -> None:
    with pytest.raises(AllocationError, match="cannot be 3: choose one of 8, 16"):
        place.run(proposal(60, Allocation({**allocations[0], "blocks.0.mlp.hidden": 3})))


def test_closing_leaves_no_process_and_no_file(place: Place) -> None:
    """The last one of each runner."""
    before = children()
    assert bool(before) is not alone(place)
    if not alone(place):
        assert any(place.session.iterdir())
    place.runner.close()
    assert poll(lambda: not children())
    if not alone(place):
        assert not place.session.exists()


def writer(path: Path) -> int:
    """The process that has a file open."""
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if entry.readlink() == path and int(entry.parts[2]) != os.getpid():
                return int(entry.parts[2])
    raise AssertionError(f"no process writes {path}")


def children() -> set[int]:
    """Processes of Ray that descend from this one."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and re.search("ray::|/ray/", " ".join(process.cmdline())):
                found.add(process.pid)
    return found


# Whole searches


def searched(folder: Path, **options: Any) -> pd.DataFrame:
    silent = Silent()
    silent.notice = lambda text: None  # type: ignore[method-assign]
    trials = launch(config_of(folder, **FRAMES, **options), silent).trials
    return trials.drop(columns=list(EXPECTED))  # what is expected of a trial changes with every other one


def test_a_search_goes_on_with_another_runner(tmp_path: Path) -> None:
    """Two workers of Ray, then Tune with one, then this process: no finished trial is repeated, and the figures are those of
    a search that never left this process, as far as what it proposes depends on no results."""
    run = tmp_path / "run"
    begun = searched(tmp_path, runner="ray", parallel=2, trials=4)
    assert list(begun["state"]) == ["COMPLETE"] * 4
    ended = written(run)
    more = searched(tmp_path, runner="tune", parallel=1, trials=7)
    assert (len(more), set(more["state"])) == (7, {"COMPLETE"})
    assert list((run / "tune").glob("*/0006_*/progress.csv"))
    assert poll(lambda: not children())
    whole = searched(tmp_path, trials=8)
    assert list(whole["number"]) == list(range(8))
    pd.testing.assert_frame_equal(begun, whole[:4])
    pd.testing.assert_frame_equal(more, whole[:7])
    assert written(run).items() >= ended.items()
    here = searched(tmp_path, trials=4, output=str(tmp_path / "here"))
    same = ["number", "label", "macs", "params", "error_before", "error", "kl"]
    pd.testing.assert_frame_equal(here[same], whole[:4][same])
    volumes = [json.loads((directory / "pareto.json").read_text())["hypervolume"] for directory in (tmp_path / "here", run)]
    assert min(volumes) > 0


def written(run: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in (run / "trials").glob(f"*/{METRICS}")}
