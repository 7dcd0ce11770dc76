"""Candidates that several processes fine-tune together, as Ray actors: CPU processes stand for GPUs."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from local_launches import config_of
from local_patience import PATIENCE, poll

from objectives.dense_model import load_dense
from objectives.evaluator import Evaluator, go_on
from search.layout import WEIGHTS
from search.runners.base import Listener
from search.runners.ray_actors import RayRunner
from search.runners.resources import MachineConfig
from search.trial import Ended, Outcome, Proposal, Screened, Screening
from spaces.allocation import Allocation

pytestmark = pytest.mark.slow

STEPS = 60


class Run:
    """A runner of one worker of two processes, and an evaluator of the same objective in this process."""

    def __init__(self, folder: Path) -> None:
        (folder / "run").mkdir()
        self.folder = folder / "run"
        self.notices: list[str] = []
        config = config_of(folder, steps=STEPS, lr=5e-3, rungs=[0.5], eval_batch_size=64)
        self.rungs: list[int] = []
        listener = Listener(notice=self.notices.append, at_rung=self.at_rung)
        self.runner = RayRunner(config.objective(self.folder), MachineConfig(gpus_per_trial=2, threads=1), listener)
        self.runner.prepare(["factors"])
        self.evaluator = Evaluator(load_dense(config.objective(self.folder)))
        dense = self.evaluator.dense
        self.allocation = dense.space.smallest(lambda allocation: dense.costs.load(allocation, {"macs": 1}))

    def at_rung(self, proposal: Proposal, step: int, error: float) -> str | None:
        self.rungs.append(step)
        return "stopped by the test" if proposal.number == 3 else None

    def start(self, number: int, allocation: Allocation | None = None) -> None:
        self.wait_free()
        proposal = Proposal(number=number, allocation=allocation or self.allocation, space="contract", seed=0)
        self.runner.submit(proposal, self.folder / "trials" / f"{number:04d}")

    def outcome(self) -> Outcome:
        found = self.ended()
        assert isinstance(found, Outcome)
        return found

    def ended(self) -> Ended:
        end = time.monotonic() + PATIENCE
        while (found := self.runner.wait()) is None:
            assert time.monotonic() < end
        return found

    def wait_free(self) -> None:
        def free() -> int:
            assert self.runner.wait() is None
            return self.runner.free

        assert self.runner.free or poll(free, pause=0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    run = Run(tmp_path_factory.mktemp("groups"))
    yield run
    run.runner.close()


def processes() -> list[int]:
    """Of all workers, whatever they are doing."""
    found = psutil.Process().children(recursive=True)
    return [process.pid for process in found if process.name().startswith("ray::Worker")]


def test_two_processes_find_what_one_finds(run: Run) -> None:
    run.start(0)
    outcome = run.outcome()
    alone = run.evaluator.evaluate(run.allocation, seed=0, on_rung=go_on)
    assert outcome.score is not None and outcome.score.error is not None and alone.error is not None
    assert outcome.score.error_before == alone.error_before
    found = outcome.score.rungs[STEPS // 2]
    assert found == pytest.approx(alone.rungs[STEPS // 2], abs=0.08)
    assert found < outcome.score.error_before - 0.1, "they have learnt"
    assert (outcome.score.kept_step, outcome.score.error) == (alone.kept_step, alone.error), "nearest to the dense model"
    assert (outcome.score.costs["macs"], list(outcome.score.rungs)) == (alone.costs["macs"], [STEPS // 2])
    assert (run.folder / "trials" / "0000" / WEIGHTS).exists()


def test_one_process_screens(run: Run) -> None:
    run.wait_free()
    run.runner.submit(Screening(number=1, candidates=(run.allocation,)), run.folder / "trials" / "0001")
    screened = run.ended()
    assert isinstance(screened, Screened)
    assert screened.divergences == pytest.approx([run.evaluator.divergence(run.allocation)], rel=1e-4)


def test_all_stop_at_a_rung(run: Run) -> None:
    run.start(3)
    outcome = run.outcome()
    assert outcome.reason == "stopped by the test"
    assert outcome.score is not None and outcome.score.error is None
    run.start(4)
    assert run.outcome().score is not None


@pytest.mark.parametrize("which", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_group_that_loses_a_process_is_replaced(run: Run, which: int) -> None:
    run.wait_free()
    before = processes()
    assert len(before) == 2
    run.start(5 + which)
    os.kill(before[which], 9)
    outcome = run.outcome()
    assert outcome.lost and outcome.score is None and outcome.reason is not None
    assert (run.folder / "trials" / f"{5 + which:04d}" / "stderr.log").exists()
    run.start(7 + which)
    assert run.outcome().score is not None
    assert not set(before) & set(processes())
