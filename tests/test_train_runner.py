"""A long fine-tune by two processes through Ray Train: the same model as one process makes, also when one of them is killed."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from local_digits import DATA, evaluator_of
from local_digits import MODEL as DIGITS_MODEL

from objectives.evaluator import Evaluator
from objectives.training import TrainingConfig
from search.long_finetune import LongFinetune
from search.machines import MachineConfig
from search.train_runner import train_together
from spaces.errors import DivergedError, RunError
from spaces.files import save_tensors
from spaces.models import create_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data"),  # of its own options, which Ray Train sets
]

# Nothing is drawn for an image or a batch, so that two processes see together what one would see.
PLAIN = {"mixup": 0.0, "cutmix": 0.0, "reprob": 0.0, "drop_path": 0.0}
TWO = MachineConfig(gpus=0, gpus_per_trial=2)
STEPS = 8  # of an epoch: 1,140 images in batches of 128


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    torch.manual_seed(0)
    data = replace(DATA, batch_size=128, calibration_size=64, scale=(1.0, 1.0), workers=0)
    return evaluator_of(create_model(DIGITS_MODEL), tmp_path_factory.mktemp("runs"), data=data)


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    """One Ray for all tests here, as an embedding program may have one."""
    ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, object_store_memory=1 << 27)
    yield
    ray.shutdown()


def job_of(evaluator: Evaluator, folder: Path, epochs: int = 2, **options: Any) -> LongFinetune:
    config = TrainingConfig(finetune_epochs=epochs, finetune_lr=3e-3, **{**PLAIN, **options})
    allocation = dict(evaluator.space.identity())
    return LongFinetune(
        objective=evaluator.objective, config=config, space="contract", allocation=allocation, seed=0, label=None, number=7,
        folder=folder,
    )  # fmt: skip


def trained(job: LongFinetune, evaluator: Evaluator, machines: MachineConfig, progress: Any = lambda *_: None) -> Any:
    model, found = job.run(evaluator, evaluator.model, machines, progress)
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
    assert not (tmp_path / "two" / "trial0007-ray").exists()
    job.remove()
    assert not (tmp_path / "two").exists()


def test_what_ends_every_process_is_told_and_not_repeated(evaluator: Evaluator, tmp_path: Path) -> None:
    job = job_of(evaluator, tmp_path)
    state = evaluator.model.state_dict()
    save_tensors(job.start, {**state, "head.bias": torch.full_like(state["head.bias"], torch.nan)})
    with pytest.raises(RunError, match="the long fine-tune of trial 7 failed: the model's outputs are not finite") as caught:
        train_together(job, TWO, lambda *_: None)
    assert isinstance(caught.value.__cause__, DivergedError)
