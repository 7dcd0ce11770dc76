"""A long fine-tune by two processes through Ray Train: the same model as one process makes, also when one of them is killed."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
import ray
import torch
from local_digits import DATA, evaluator_of
from local_digits import MODEL as DIGITS_MODEL
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from objectives.evaluator import Evaluator
from objectives.training.config import TrainingConfig
from search.deploy import ray_train as train_runner
from search.deploy.finetune_job import LongFinetune
from search.deploy.long_finetune import run_long_finetune
from search.deploy.ray_train import train_together
from search.runners.resources import MachineConfig, plan_workers
from spaces.errors import ConfigError, DivergedError, RunError
from spaces.models.create import create_model

# Of Ray Data's own options, which Ray Train sets.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")

# Nothing is drawn for an image or a batch, so that two processes see together what one would see.
PLAIN = {"mixup": 0.0, "cutmix": 0.0, "reprob": 0.0, "drop_path": 0.0}
TWO = MachineConfig(gpus=0, gpus_per_trial=2)
STEPS = 8  # of an epoch: 1,140 images in batches of 128


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    torch.manual_seed(0)
    data = replace(DATA, batch_size=128, calibration_size=64, scale=(1.0, 1.0), workers=0)
    return evaluator_of(create_model(DIGITS_MODEL), tmp_path_factory.mktemp("runs"), data=data)


@pytest.fixture
def own_ray() -> Iterator[None]:
    """As an embedding program may have one."""
    ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, object_store_memory=1 << 27)
    yield
    ray.shutdown()


def job_of(evaluator: Evaluator, folder: Path, epochs: int = 2, **options: Any) -> LongFinetune:
    config = TrainingConfig(finetune_epochs=epochs, finetune_lr=3e-3, **{**PLAIN, **options})
    allocation = dict(evaluator.dense.space.identity())
    return LongFinetune(
        objective=evaluator.dense.objective, config=config, space="contract", allocation=allocation,
        seed=0, label=None, name="trial7",
        folder=folder,
    )  # fmt: skip


def trained(job: LongFinetune, evaluator: Evaluator, machines: MachineConfig, progress: Any = lambda *_: None) -> Any:
    model, found = run_long_finetune(job, evaluator.dense, evaluator.dense.model, machines, progress)
    return model.state_dict(), found


class Killer:
    """A progress that kills one of Ray Train's processes when the second epoch has begun, once."""

    def __init__(self) -> None:
        self.killed: int | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.killed is None and done > STEPS:
            children = psutil.Process().children(recursive=True)  # Ray's own processes are children of the driver
            workers = [each for each in children if "RayTrainWorker" in " ".join(each.cmdline())]
            self.killed = workers[-1].pid
            os.kill(self.killed, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("own_ray")
def test_two_processes_train_as_one_and_outlive_a_kill(evaluator: Evaluator, tmp_path: Path) -> None:
    expected, alone = trained(job_of(evaluator, tmp_path / "one", epochs=4), evaluator, MachineConfig())
    killer, job = Killer(), job_of(evaluator, tmp_path / "two", epochs=4)
    weights, found = trained(job, evaluator, TWO, killer)
    assert killer.killed is not None
    assert [epoch.processes for epoch in found.epochs] == [2] * 4
    assert [epoch.loss for epoch in found.epochs] == pytest.approx([epoch.loss for epoch in alone.epochs], rel=1e-3)
    assert (found.best_epoch, found.best_weights) == (alone.best_epoch, alone.best_weights)
    assert all(torch.allclose(weights[name], expected[name], atol=2e-3) for name in expected)
    assert found.error < found.start_error - 0.2
    assert not (tmp_path / "two" / "trial7-ray").exists()
    job.remove(evaluator.dense)
    assert not (tmp_path / "two").exists()


class Fits:
    """What Ray Train's attempts end with, one after another; the parts that batches were split in."""

    def __init__(self, *ends: BaseException | None) -> None:
        self.ends, self.parts = list(ends), list[int]()

    def __call__(self, share: Any, progress: Any) -> BaseException | None:
        self.parts.append(share.parts)
        return self.ends.pop(0)


@pytest.fixture
def until_done(monkeypatch: pytest.MonkeyPatch, evaluator: Evaluator, tmp_path: Path) -> Callable[..., list[int]]:
    def run(*ends: BaseException | None) -> list[int]:
        fits = Fits(*ends)
        monkeypatch.setattr(train_runner, "fit_once", fits)
        monkeypatch.setattr(train_runner, "Connection", lambda machines: Mock(plan=plan_workers(machines, {"CPU": 2})))
        monkeypatch.setattr(train_runner, "Queue", Mock)
        train_together(job_of(evaluator, tmp_path), evaluator.dense.model.state_dict(), TWO, lambda *_: None)
        assert fits.ends == []
        return fits.parts

    return run


def test_lost_processes_are_replaced_three_times(until_done: Callable[..., list[int]]) -> None:
    lost = [RuntimeError(f"Connection closed by peer {number}") for number in range(4)]
    assert until_done(*lost[:3], None) == [1, 1, 1, 1]
    with pytest.raises(RunError, match="the long fine-tune of trial7 failed: Connection closed by peer 3"):
        until_done(*lost)


def test_too_little_memory_splits_batches_once(until_done: Callable[..., list[int]]) -> None:
    full = torch.OutOfMemoryError("CUDA out of memory")
    assert until_done(full, RuntimeError("lost"), None) == [1, 2, 2]
    with pytest.raises(RunError, match="CUDA out of memory"):
        until_done(full, full, full, full, full)


def test_what_a_repetition_cannot_mend_is_told_at_once(until_done: Callable[..., list[int]]) -> None:
    with pytest.raises(RunError, match="failed: the loss became nan at step 3"):
        until_done(DivergedError("the loss became nan at step 3"))
    with pytest.raises(ConfigError, match="multiple of 2"):
        until_done(ConfigError("batch_size must be a multiple of 2"))


def test_the_cause_is_what_the_process_met_first() -> None:
    """As Ray Train tells it: an exception for every rank, in its own wrapper."""
    gone = RuntimeError("Connection closed by peer")
    for ours in (DivergedError("nan"), ConfigError("batch"), torch.OutOfMemoryError("CUDA out of memory")):
        ends = (UserExceptionWithTraceback(gone, "trace"), UserExceptionWithTraceback(ours, "trace"))
        failures: dict[int, Exception] = dict(enumerate(ends))
        assert train_runner.cause_of(WorkerGroupError("failed", failures)) is ours
    assert train_runner.cause_of(WorkerGroupError("failed", {0: UserExceptionWithTraceback(gone, "trace")})) is gone
    assert isinstance(train_runner.cause_of(ValueError("no such backend")), RunError)
