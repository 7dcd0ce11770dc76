"""A training batch with what it is taught: the true labels, and the dense model's outputs on its images."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from objectives.runtime.device import half_type
from objectives.training.config import FinetuneConfig


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one optimiser step is made from.

    Attributes:
        images: [B, C, H, W] float32, on the device.
        labels: [B] int64, or class probabilities [B, classes].
        soft: logits of the dense model on the images, [B, classes] float32; None trains on the labels alone.
    """

    images: Tensor
    labels: Tensor
    soft: Tensor | None = None

    def chunks(self, parts: int) -> Iterator["Batch"]:
        """It, split in so many parts."""
        images, labels = self.images.chunk(parts), self.labels.chunk(parts)
        soft = [None] * len(images) if self.soft is None else self.soft.chunk(parts)
        for some, their, taught in zip(images, labels, soft, strict=True):
            yield Batch(images=some, labels=their, soft=taught)


def taught(
    batches: Iterable[tuple[Tensor, Tensor]], teacher: nn.Module, config: FinetuneConfig, parts: int = 1
) -> Iterator[Batch]:
    """Batches with soft labels, which are computed as they are taken.

    Args:
        batches: images and labels, on any device.
        teacher: the dense model, in evaluation mode; batches are moved to its device.
        config: of the fine-tune; without distillation nothing is computed.
        parts: how many each batch passes in, for as much less memory.
    """
    device = next(teacher.parameters()).device
    for images, labels in batches:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        yield Batch(images=images, labels=labels, soft=soft_labels(teacher, images, config, parts))


def labelled(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Batch]:
    """Batches of images and labels, on the device of the model to be, with no dense model to learn from."""
    return (Batch(images=images, labels=labels) for images, labels in batches)


@torch.no_grad()
def soft_labels(teacher: nn.Module, images: Tensor, config: FinetuneConfig, parts: int = 1) -> Tensor | None:
    """Logits of the dense model, [B, classes] float32; None where the fine-tune has no distillation."""
    if config.distillation == 0:
        return None
    with precision(config, images.device):
        return torch.cat([teacher(some).float() for some in images.chunk(parts)])


def precision(config: FinetuneConfig, device: torch.device) -> torch.autocast | nullcontext[None]:
    """The context of mixed precision, where the options ask for it."""
    wanted = device.type == "cuda" if config.amp == "auto" else config.amp == "on"
    return torch.autocast(device.type, dtype=half_type(device)) if wanted else nullcontext()
