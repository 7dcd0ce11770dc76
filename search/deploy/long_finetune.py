"""The long fine-tune of one point before its export: here, or by several processes; kept until the export is whole."""

from dataclasses import asdict, replace
from typing import Any

from torch import nn

from objectives.dense_model import DenseModel
from objectives.runtime.distributed import ALONE
from objectives.runtime.progress import Progress
from objectives.training.config import TrainingConfig
from objectives.training.epochs import train
from objectives.training.long_finetune import Trained
from search.deploy.finetune_job import FOLDER, LongFinetune
from search.deploy.points import Point
from search.run.run import Run
from search.runners.resources import MachineConfig
from spaces.errors import DivergedError, RunError


def long_finetune(run: Run, point: Point, config: TrainingConfig) -> LongFinetune:
    """The long fine-tune of a point of a run."""
    objective = run.config.objective(run.directory).settled
    return LongFinetune(
        objective=replace(objective, factors=(run.directory / "factors").absolute()),
        config=config,
        space=point.space,
        allocation=dict(point.allocation),
        seed=run.config.study.seed,
        label=point.label,
        name=point.name if point.number is None else f"trial{point.number}",
        folder=(run.directory / "export" / FOLDER).absolute(),
    )


def run_long_finetune(
    job: LongFinetune, dense: DenseModel, model: nn.Module, machines: MachineConfig, progress: Progress
) -> tuple[nn.Module, Trained]:
    """The model after the long fine-tune, from its checkpoint on where there is one.

    Args:
        job: of the point.
        dense: of the objective, in this process.
        model: the point's, with the weights of its short fine-tune.
        machines: with `gpus_per_trial` above 1, or `gpus`, so many processes train, through Ray Train.
        progress: called with (what, optimiser steps done, in all).

    Raises:
        RunError: it diverged, or its processes were lost again and again.
    """
    done, course = job.epochs_done(dense), job.course(dense)
    progress("long fine-tune", done * course.data.epoch_steps, course.steps)
    if machines.distributed and done < job.config.finetune_epochs:
        from search.deploy.ray_train import train_together

        train_together(job, model.state_dict(), machines, progress)
    try:  # where others have trained, the checkpoint holds all of it
        return train(model, course, dense.teacher, job.checkpoint(dense), ALONE, progress)
    except DivergedError as error:
        raise RunError(f"the long fine-tune of {job.name} failed: {error}") from error


def described(config: TrainingConfig) -> dict[str, Any] | None:
    """The options that are not the default's, as JSON has them; None for no long fine-tune."""
    default = asdict(TrainingConfig())
    return {name: value for name, value in asdict(config).items() if value != default[name]} or None
