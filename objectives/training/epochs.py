"""The epochs of a long fine-tune: trained, measured, and kept in a file from which they go on."""

import copy
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from timm.layers import DropPath, calculate_drop_path_rates
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from objectives.error import evaluate
from objectives.runtime.distributed import ALONE, Group
from objectives.runtime.out_of_memory import within_memory
from objectives.runtime.progress import Progress, Step
from objectives.training.batch import taught
from objectives.training.finetune import finetune
from objectives.training.long_finetune import Course, Epoch, Trained
from objectives.training.state import load_state, read_note, save_state
from spaces.errors import DivergedError, RunError


def train(
    model: nn.Module,
    course: Course,
    teacher: nn.Module,
    checkpoint: Path,
    group: Group = ALONE,
    progress: Progress = lambda what, done, total: None,
    parts: int = 1,
) -> tuple[nn.Module, Trained]:
    """Fine-tune a copy of a model for some epochs; of all weights, keep those with the least error on the search split.

    After every epoch the weights and their moving average are measured, and the state is written. Of equal errors the later
    one counts, and the average before the weights.

    Args:
        model: the compressed model; it stays as it is.
        course: what to do.
        teacher: the dense model, in evaluation mode, on the device to train on.
        checkpoint: file of the state after the last epoch (safetensors). Where it has this course's, the fine-tune goes on from
            there: on a CPU with as many processes the result is that of an uninterrupted one, to the bit. It stays
            when all is done, so that the result can be had again; whoever has put that into safety removes it.
        group: the processes that train together. All call this; the first one writes and reports.
        progress: called with (what, optimiser steps done, in all).
        parts: split every batch in so many; alone, one that runs out of memory is begun anew with 2, at its last epoch.

    Returns:
        The model on the CPU, in evaluation mode, and what was measured.

    Raises:
        DivergedError: the loss or the outputs became NaN or infinite. The checkpoint is removed.
        RunError: the processes of the group do not find the same checkpoint.
    """

    def attempt(parts: int) -> tuple[nn.Module, Trained]:
        return _Training(model, course, teacher, checkpoint, group, progress, parts).run()

    if parts > 1 or group != ALONE:
        return attempt(parts)
    return within_memory(attempt)


class _Training:
    """One attempt of `train`."""

    def __init__(
        self,
        model: nn.Module,
        course: Course,
        teacher: nn.Module,
        checkpoint: Path,
        group: Group,
        progress: Progress,
        parts: int,
    ) -> None:
        self._course, self._teacher, self._checkpoint, self._group, self._progress = (
            course,
            teacher,
            checkpoint,
            group,
            progress,
        )
        self._device = next(teacher.parameters()).device
        self._original = model
        self._model = _with_drop_path(copy.deepcopy(model).to(self._device), course.config.drop_path)
        decay = course.config.model_ema_decay
        self._ema = ModelEmaV3(self._model, decay=decay, use_warmup=True) if decay else None
        note = read_note(checkpoint, course.mark)
        self._check_same(note)
        self._state = load_state(checkpoint) if note else {}
        self._best: Mapping[str, Tensor] = self._state.get("best", model.state_dict())
        self._trained = _trained(note) if note else self._begin(parts)
        self._trained = replace(self._trained, parts=max(parts, self._trained.parts))

    def run(self) -> tuple[nn.Module, Trained]:
        """What `train` gives."""
        if len(self._trained.epochs) < self._course.config.finetune_epochs:
            try:
                self._climb()
            except DivergedError as error:
                if self._group.leads:
                    self._checkpoint.unlink(missing_ok=True)
                raise DivergedError(f"{str(error).partition(':')[0]}: lower --finetune-lr") from error
        model = copy.deepcopy(self._original).cpu()
        model.load_state_dict(self._best)
        return model.eval(), self._trained

    def _begin(self, parts: int) -> Trained:
        error = self._error(self._model, parts)
        return Trained(start_error=error, error=error)

    def _check_same(self, note: Any) -> None:
        """Raise unless all processes go on from the same epoch."""
        done = 0 if note is None else len(note["epochs"])
        if self._group.total(done)[0] != done * self._group.size:
            raise RunError(f"the processes do not see the same {self._checkpoint}: choose an --output that all nodes share")

    def _climb(self) -> None:
        course, trained = self._course, self._trained
        lr, done = course.config.finetune_lr or course.finetune.rate, len(trained.epochs)
        config = replace(course.finetune, steps=course.steps, lr=lr)
        batches = course.batches(self._group, self._device, done)
        lessons = taught(batches, self._teacher, config, trained.parts)
        steps = finetune(self._model, lessons, config, parts=trained.parts, resume=self._resume, group=self._group)
        losses, began = list[float](), time.perf_counter()
        for step in steps:
            if self._ema is not None:
                self._ema.update(self._model, step.step)
            losses.append(step.loss)
            if step.step < course.steps:
                self._tell(step.step)
            if len(losses) == course.data.epoch_steps:
                self._end_epoch(step, sum(losses) / len(losses), began)
                losses, began = [], time.perf_counter()
        self._tell(course.steps)  # the last epoch is measured too

    def _tell(self, step: int) -> None:
        if self._group.leads:
            self._progress("long fine-tune", step, self._course.steps)

    def _resume(self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> int:
        self._optimizer, self._scaler = optimizer, scaler
        if self._state:
            model.load_state_dict(self._state["model"])
            optimizer.load_state_dict(self._state["optimizer"])
            scaler.load_state_dict(self._state["scaler"])
            if self._ema is not None:
                self._ema.module.load_state_dict(self._state["ema"])
            self._state = {}
        return len(self._trained.epochs) * self._course.data.epoch_steps

    def _end_epoch(self, step: Step, loss: float, began: float) -> None:
        number = len(self._trained.epochs) + 1
        error = self._error(self._model, self._trained.parts)
        self._keep(number, "trained", error, self._model)
        average = None
        if self._ema is not None:
            average = self._error(self._ema.module, self._trained.parts)
            self._keep(number, "ema", average, self._ema.module)
        seconds, processes = time.perf_counter() - began, self._group.size
        epoch = Epoch(epoch=number, loss=loss, lr=step.lr, error=error, ema_error=average, seconds=seconds, processes=processes)
        self._trained = replace(self._trained, epochs=(*self._trained.epochs, epoch))
        if self._group.leads:
            self._save()
        self._model.train()

    def _error(self, model: nn.Module, parts: int) -> float:
        return evaluate(model, self._course.data.evaluation("search", group=self._group), None, parts, self._group).error

    def _keep(self, number: int, weights: Literal["trained", "ema"], error: float, model: nn.Module) -> None:
        """Take these weights unless those that were taken are better."""
        if error <= self._trained.error:
            self._best = {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}
            self._trained = replace(self._trained, best_epoch=number, best_weights=weights, error=error)

    def _save(self) -> None:
        ema = None if self._ema is None else self._ema.module.state_dict()
        optimizer, scaler = self._optimizer.state_dict(), self._scaler.state_dict()
        state = {"model": self._model.state_dict(), "ema": ema, "best": self._best, "optimizer": optimizer, "scaler": scaler}
        save_state(self._checkpoint, self._course.mark, state, asdict(self._trained))


def _trained(note: Mapping[str, Any]) -> Trained:
    return Trained(**{**note, "epochs": tuple(Epoch(**epoch) for epoch in note["epochs"])})


def _with_drop_path(model: nn.Module, rate: float) -> nn.Module:
    """`model` with stochastic depth of a rate that rises linearly to this one; with its own for a rate of 0."""
    blocks = list(model.blocks) if rate else []  # type: ignore[arg-type]
    for block, own in zip(blocks, calculate_drop_path_rates(rate, len(blocks)), strict=True):
        for parent in list(block.modules()):
            for name, child in list(parent.named_children()):
                if name.startswith("drop_path") and isinstance(child, DropPath | nn.Identity):
                    setattr(parent, name, DropPath(own) if own else child)
    return model
