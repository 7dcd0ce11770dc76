"""How long a trial will take: from a few steps of one candidate, before the search."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from objectives.dense_model import DenseModel
from objectives.error import evaluate
from objectives.evaluator import Evaluator
from objectives.measures import RUNG_IMAGES
from objectives.runtime.out_of_memory import within_memory
from objectives.training.finetune import finetune
from spaces.allocation import Allocation

_TIMED = 2  # optimiser steps, after one to warm up
_STILL = 1e-9  # learning rate: so short a warm-up could diverge where that of a trial does not


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What one trial takes, in seconds of the device that it was timed on.

    Without the starting of loader processes, and what is computed once for all trials.

    Attributes:
        build: building the candidate, and moving it to the device.
        step: one optimiser step.
        evaluation: one pass over the search split.
        seconds: the whole trial: all steps, the images before and after them, and the rungs; its last weights are kept.
        weights: bytes of the candidate's weights.
        parts: how many batches were split in, so that it fitted in memory.
    """

    build: float
    step: float
    evaluation: float
    seconds: float
    weights: int
    parts: int


def forecast(evaluator: Evaluator, allocation: Allocation, clock: Callable[[], float] = time.perf_counter) -> Forecast:
    """Time three optimiser steps and two batches of the search split. What is evaluated afterwards is the same to the bit.

    Args:
        evaluator: on the device that trials will have; its factors are computed first, if they are not there.
        allocation: of the candidate; the dense model's takes longest.
        clock: in seconds.

    Raises:
        AllocationError: the space does not offer it.
        DivergedError: the loss or the outputs became NaN or infinite.
    """
    if allocation != evaluator.dense.space.identity():
        _ = evaluator.dense.factors
    device = evaluator.dense.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        return within_memory(lambda parts: _timed(evaluator, allocation, clock, parts))


def _timed(evaluator: Evaluator, allocation: Allocation, clock: Callable[[], float], parts: int) -> Forecast:
    dense = evaluator.dense

    def now() -> float:
        if dense.device.type != "cpu":
            torch.accelerator.synchronize(dense.device)
        return clock()

    start = now()
    model = evaluator.build(allocation).to(dense.device)
    build = now() - start
    step = _step(dense, model, now, parts)
    images, each = _search_images(dense), _image(dense, model, now, parts)
    steps, rung = dense.objective.finetune.steps, min(RUNG_IMAGES, images)
    on_search = images if steps else 0  # without steps the images before are those after
    before = dense.profile_images + rung if dense.objective.split_before == "train" else on_search
    evaluated = before + images + len(dense.objective.rung_steps) * rung
    return Forecast(
        build=build,
        step=step,
        evaluation=images * each,
        seconds=build + steps * step + evaluated * each,
        weights=sum(tensor.nbytes for tensor in model.state_dict().values()),
        parts=parts,
    )


def _step(dense: DenseModel, model: nn.Module, now: Callable[[], float], parts: int) -> float:
    """Seconds of an optimiser step, with the making of its batch."""
    config = replace(dense.objective.finetune, steps=1 + _TIMED, lr=_STILL)
    batches = dense.batches.training(config.steps, dense.objective.seed, parts=parts)
    steps = finetune(model, batches, config, parts=parts)
    next(steps)
    start = now()
    for _ in range(_TIMED):
        next(steps)
    return (now() - start) / _TIMED


def _image(dense: DenseModel, model: nn.Module, now: Callable[[], float], parts: int) -> float:
    """Seconds of evaluation for one image of the search split: of its second batch, or of its only one again."""
    batches = dense.batches.search()
    batch = next(batches)
    evaluate(model, [batch], None, parts)
    start = now()
    batch = next(batches, batch)
    evaluate(model, [batch], None, parts)
    return (now() - start) / len(batch[1])


def _search_images(dense: DenseModel) -> int:
    size = dense.data.size("search")
    return dense.figures.count if size is None else size
