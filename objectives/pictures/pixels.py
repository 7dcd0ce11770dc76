"""Pixels: what a picture is kept as between reading and computing, and how a model's input is computed of them."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import Compose, Normalize, PILToTensor, ToTensor

from objectives.pictures.transform import Transform


class Pixels:
    """The last part of a transform, from pixels to a model's input, done for a whole batch on the device of the model.

    Pixels are uint8 where a transform ends with division by 255 and normalisation. They are a quarter of the input then, and
    nothing is lost. Pixels of any other transform are the input itself, float32.

    Args:
        preprocessing: mean and std of the model, in timm's words.
    """

    def __init__(self, preprocessing: Mapping[str, Any]) -> None:
        self._mean, self._std = (
            torch.tensor(preprocessing[name], dtype=torch.float32).view(-1, 1, 1) for name in ("mean", "std")
        )

    def before(self, transform: Transform) -> Transform:
        """What makes pixels [C, H, W] of a picture, of a transform that makes the input of it."""
        if not self.are_whole_numbers(transform):
            return transform
        composed: Transform = Compose([*list(_steps(transform))[:-2], PILToTensor()])
        return composed

    def are_whole_numbers(self, transform: Transform) -> bool:
        """Whether the pixels of a transform are uint8."""
        steps = list(_steps(transform))
        return len(steps) > 1 and isinstance(steps[-2], ToTensor) and self._is_ours(steps[-1])

    def input(self, pixels: Tensor) -> Tensor:
        """The model's input [B, C, H, W] float32, on the device of the pixels; on a CPU, the transform's to the bit."""
        if pixels.dtype != torch.uint8:
            return pixels
        mean, std = self._mean.to(pixels.device), self._std.to(pixels.device)
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)

    def _is_ours(self, step: object) -> bool:
        if not isinstance(step, Normalize):
            return False
        pairs = (step.mean, self._mean), (step.std, self._std)
        return all(torch.equal(torch.as_tensor(given, dtype=torch.float32).flatten(), own.flatten()) for given, own in pairs)


def _steps(transform: object) -> Iterator[object]:
    """The steps of a transform, also of those within it."""
    if isinstance(transform, Compose):
        for step in transform.transforms:
            yield from _steps(step)
    else:
        yield transform
