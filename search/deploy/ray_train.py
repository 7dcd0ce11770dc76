"""A long fine-tune by several processes, through Ray Train; begun again at its last epoch when one of them is lost."""

import logging
import os
import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ray.exceptions import RayError
from ray.util.queue import Empty, Queue
from torch import Tensor

from objectives.dense_model import load_dense
from objectives.runtime.distributed import Group
from objectives.runtime.out_of_memory import is_out_of_memory
from objectives.runtime.progress import Progress
from search.deploy.finetune_job import LongFinetune
from search.runners.ray_cluster import Connection, first_sentence
from search.runners.resources import MachineConfig, Plan
from spaces.errors import CompressionError, ConfigError, DivergedError, RunError, first_line
from spaces.tensors import save_tensors

_LOSSES = 3  # of processes in one export: what ends them more often does not come from outside
_SECONDS = 1.0  # between two reports of optimiser steps
_TIMEOUT = 1800  # seconds that processes wait for each other, the loading of models and images included


@dataclass(frozen=True, kw_only=True)
class _Share:
    """What each process is given."""

    job: LongFinetune
    directory: str
    plan: Plan
    parts: int
    told: Queue


def train_together(job: LongFinetune, weights: Mapping[str, Tensor], machines: MachineConfig, progress: Progress) -> None:
    """Have processes train until the job's checkpoint holds the result.

    A process that is lost ends the others; all begin again at the last epoch. Where one ran out of memory, they begin again
    with batches in two parts.

    Args:
        job: what to train.
        weights: that it begins with.
        machines: `gpus_per_trial` processes, each with a GPU where there are some.
        progress: as of `objectives.training.epochs.train`.

    Raises:
        RunError: Ray or a process cannot be started, processes were lost too often, or the training diverged.
        ConfigError: more was asked for than there is, ray[train] is missing, or a batch cannot be divided.
    """
    connection = Connection(machines)
    try:
        save_tensors(job.start, weights)
        _until_done(job, connection.plan, progress)
    finally:
        connection.close()


def _until_done(job: LongFinetune, plan: Plan, progress: Progress) -> None:
    told, losses, parts = Queue(), 0, 1
    try:
        while True:
            share = _Share(job=job, directory=str(Path.cwd()), plan=plan, parts=parts, told=told)
            error = fit_once(share, progress)
            if error is None:
                return
            if isinstance(error, CompressionError):
                raise error
            if is_out_of_memory(error) and parts == 1:
                parts = 2
                continue
            losses += 1
            if isinstance(error, DivergedError) or losses > _LOSSES:
                raise RunError(f"the long fine-tune of {job.name} failed: {first_sentence(error)}") from error
    finally:
        with suppress(RayError):
            told.shutdown(force=True)


def fit_once(share: _Share, progress: Progress) -> BaseException | None:
    """Train once; what ended it, if it did not end well. Ray Train has a thread of its own: Ctrl-C stays with its caller."""
    trainer, ended = _trainer(share), list[BaseException | None]()

    def body() -> None:
        try:
            trainer.fit()
            ended.append(None)
        except Exception as error:
            ended.append(cause_of(error))

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    while thread.is_alive():
        with suppress(Empty):
            progress(*share.told.get(timeout=_SECONDS))
    shutil.rmtree(share.job.notes, ignore_errors=True)
    return ended[0]


def _trainer(share: _Share) -> Any:
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        raise ConfigError(f"several processes need Ray Train ({error}): pip install 'vit-compression-search[train]'") from error
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # what ends it is told by who has started it
    plan = share.plan
    return TorchTrainer(
        _take_part,
        train_loop_config={"share": share},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if plan.gpus else "gloo", timeout_s=_TIMEOUT),
        scaling_config=ScalingConfig(num_workers=plan.processes, use_gpu=bool(plan.gpus)),
        run_config=RunConfig(  # type: ignore[call-arg]  # mypy sees the first version of Ray Train
            name=str(os.getpid()),
            storage_path=str(share.job.notes),
            failure_config=FailureConfig(max_failures=0),  # what a repetition cannot mend would be repeated too
            worker_runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(plan.threads)}},
        ),
    )


def _take_part(config: dict[str, Any]) -> None:
    """What Ray Train runs in every process, which is in a process group then."""
    from ray.train import get_context
    from ray.train.torch import get_device

    share: _Share = config["share"]
    os.chdir(share.directory)
    torch.set_num_threads(share.plan.threads)
    group = Group(rank=get_context().get_world_rank(), size=get_context().get_world_size())
    device = str(get_device()) if share.plan.gpus else "cpu"
    dense = load_dense(replace(share.job.objective, device=device))
    share.job.take_part(dense, group, _teller(share.told), share.parts)


def _teller(told: Queue) -> Progress:
    """A progress that goes to the driver, at most once a second."""
    due = 0.0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal due
        if time.monotonic() >= due or done == total:
            due = time.monotonic() + _SECONDS
            told.put_nowait((what, done, total))

    return progress


def cause_of(error: Exception) -> BaseException:
    """Which exception of a process ended it: ours before one that says that others are gone."""
    from ray.train import TrainingFailedError

    failures: list[BaseException] = [
        getattr(each, "_base_exc", each) for each in getattr(error, "worker_failures", {}).values()
    ]
    if not isinstance(error, TrainingFailedError | RayError):  # before there was a process to lose
        return RunError(f"Ray Train cannot be started: {type(error).__name__}: {first_line(error)}")
    ours = [each for each in failures if isinstance(each, CompressionError | DivergedError) or is_out_of_memory(each)]
    return next(iter([*ours, *failures, error]))
