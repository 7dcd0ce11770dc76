"""What a long fine-tune is: epochs with timm's recipe for vision transformers, each of which can be begun anew."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import timm
import torch
from timm.data import Mixup
from timm.data.mixup import mixup_target
from torch import Tensor

from objectives.data.loaders import Data
from objectives.runtime.distributed import Group
from objectives.runtime.seeding import seed_everything
from objectives.training.config import FinetuneConfig, TrainingConfig

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_FORMAT = 1
_EPOCH_SEEDS = 15_485_863


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch: its number from 1, and the top-1 error on the search split after it.

    Attributes:
        epoch: its number.
        loss: mean of its steps'.
        lr: of its last step.
        error, ema_error: of the weights, and of their moving average if there is one.
        seconds: wall time, both evaluations included.
        processes: that shared its batches.
    """

    epoch: int
    loss: float
    lr: float
    error: float
    ema_error: float | None
    seconds: float
    processes: int


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a long fine-tune was, and which of its weights were taken.

    Attributes:
        start_error: top-1 error on the search split before it.
        epochs: what was measured after each.
        best_epoch: whose weights were taken; 0 for those before it, where none was better or as good.
        best_weights: which: as before the fine-tune, as trained, or their moving average.
        error: of the weights that were taken, on the search split.
        parts: how many every batch was split in, for less memory.
    """

    start_error: float
    epochs: tuple[Epoch, ...] = ()
    best_epoch: int = 0
    best_weights: Literal["start", "trained", "ema"] = "start"
    error: float
    parts: int = 1

    @property
    def seconds(self) -> float:
        """Wall time of all epochs."""
        return sum(epoch.seconds for epoch in self.epochs)


@dataclass(frozen=True, kw_only=True)
class Course:
    """All that a long fine-tune follows from, besides the model that it begins with.

    Attributes:
        config: its epochs and variation.
        finetune: optimiser and distillation.
        data: the images.
        classes: of the model.
        seed: of order, variation and dropouts.
        conditions: what else its checkpoint is only good for: which model it begins with.
    """

    config: TrainingConfig
    finetune: FinetuneConfig
    data: Data
    classes: int
    seed: int
    conditions: tuple[object, ...] = ()

    @property
    def steps(self) -> int:
        """Optimiser steps of all epochs."""
        return self.config.finetune_epochs * self.data.epoch_steps

    @property
    def mark(self) -> str:
        """A hash of it, and of the versions that it is trained with."""
        versions = (_FORMAT, torch.__version__, timm.__version__)
        everything = (*versions, self.config, self.finetune, self.data.config, self.seed, *self.conditions)
        return hashlib.sha256(repr(everything).encode()).hexdigest()

    def batches(self, group: Group, device: torch.device, done: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [B, C, H, W] and class probabilities [B, classes] of every epoch after the first `done`, mixed.

        At the start of each, all random numbers that anybody draws are seeded anew: an epoch needs nothing of the one before it
        but the weights, and the state of the optimiser.
        """
        mix = _mixing(self.config, self.classes)
        for number in range(done, self.config.finetune_epochs):
            seed_everything(group.seed(self.seed + _EPOCH_SEEDS * number))
            policy = self.config.policy(self.data.preprocessing["input_size"], self.data.config.aa)
            for images, labels in self.data.epoch(number, self.seed, policy, self.config.reprob, group):
                yield mix(images.to(device, non_blocking=True), labels.to(device, non_blocking=True))


def _mixing(config: TrainingConfig, classes: int) -> Mix:
    """Mixup and cutmix of a batch, in place, and its labels as smoothed probabilities."""

    def plain(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return images, mixup_target(labels, classes, smoothing=config.smoothing)

    if not (config.mixup or config.cutmix):
        return plain
    mixup = Mixup(config.mixup, config.cutmix, label_smoothing=config.smoothing, num_classes=classes)

    def mixed(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        even = len(labels) // 2 * 2  # images are mixed in pairs: an odd one is left out
        return mixup(images[:even], labels[:even]) if even else plain(images, labels)

    return mixed
