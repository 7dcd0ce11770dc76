"""The transform of evaluation: an image becomes a model's input, alike in a search, in an export and in predict."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from spaces.errors import DataError, first_line, printable

Transform = Callable[[Image.Image], Tensor]


def evaluation_transform(preprocessing: Mapping[str, Any]) -> Transform:
    """What makes a tensor [C, H, W] of an image, as timm's `create_transform` does, to the bit.

    timm composes the transforms of torchvision where it can. These are composed here without it, since its import takes long.

    Args:
        preprocessing: input_size [C, H, W], interpolation, mean, std, crop_pct and crop_mode, in timm's words.
    """
    size, mode = tuple(preprocessing["input_size"][1:]), preprocessing["crop_mode"]
    resized = tuple(math.floor(side / preprocessing["crop_pct"]) for side in size)
    is_square = len(set(resized)) == 1
    if mode != "squash" and not (mode == "center" and is_square):
        return _of_timm(preprocessing)
    steps = [
        Resize(resized if mode == "squash" else resized[0], InterpolationMode(preprocessing["interpolation"])),
        CenterCrop(size),
        ToTensor(),
        Normalize(preprocessing["mean"], preprocessing["std"]),
    ]
    composed: Transform = Compose(steps)
    return composed


def _of_timm(preprocessing: Mapping[str, Any]) -> Transform:
    """With borders, or for images that are not square: timm has transforms of its own for these."""
    from timm.data import create_transform

    options = {name: preprocessing[name] for name in ("interpolation", "mean", "std", "crop_pct", "crop_mode")}
    composed: Transform = create_transform(tuple(preprocessing["input_size"]), **options, is_training=False)
    return composed


def prepared(transform: Transform, image: Image.Image, name: str) -> Tensor:
    """The model's input of an image.

    Args:
        transform: of evaluation or of training.
        image: as `Reading` reads it.
        name: what to call it in an error.

    Raises:
        DataError: its shorter side would be resized to no pixel.
    """
    try:
        return transform(image)
    except ValueError as error:  # Pillow's
        size = f"{image.width}x{image.height} pixels"
        raise DataError(
            f"{printable(name)}, {size}, cannot be resized for the model ({first_line(error)}): leave it out"
        ) from error
