"""The transform of training images, as the options say."""

from collections.abc import Callable, Mapping
from typing import Any

from timm.data import create_transform
from torchvision.transforms import Compose, RandomCrop

from objectives.data.config import DataConfig
from objectives.pictures.transform import Transform


def training_transform(config: DataConfig, preprocessing: Mapping[str, Any], **variation: Any) -> Transform:
    """What makes a varied tensor [C, H, W] of an image as it is read.

    Args:
        config: how images are varied.
        preprocessing: `spaces.models.create.preprocessing` of the model.
        variation: further arguments of timm's transform, in place of the configuration's.
    """
    size = tuple(preprocessing["input_size"])
    options: dict[str, Any] = {name: preprocessing[name] for name in ("interpolation", "mean", "std")}
    options.update(is_training=True, hflip=config.hflip, auto_augment=config.aa, scale=config.scale)
    options.update(color_jitter=config.color_jitter or None)
    options.update(variation)
    padded: list[Callable[[Any], Any]] = []
    if config.crop_padding:
        padded.append(RandomCrop(size[1:], padding=config.crop_padding))
        whole = size[2] / size[1]  # the aspect ratio whose only crop is the whole image
        options.update(scale=(1.0, 1.0), ratio=(whole, whole))
    composed: Transform = Compose([*padded, create_transform(size, **options)])
    return composed
