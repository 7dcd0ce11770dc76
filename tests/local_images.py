"""Images on disk for the tests of data: every image carries its own number as its brightness."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from objectives.data.config import DataConfig
from objectives.data.loaders import Data

SIZE = 8
# As they are: no crop, no scaling but to [0, 1], so that a batch tells which images it holds.
RGB: dict[str, Any] = {
    "input_size": [3, SIZE, SIZE], "interpolation": "bilinear", "mean": [0.0] * 3, "std": [1.0] * 3,
    "crop_pct": 1.0, "crop_mode": "center",
}  # fmt: skip
GREY = RGB | {"input_size": [1, SIZE, SIZE], "mean": [0.0], "std": [1.0]}


def picture(number: int, width: int = SIZE, height: int = SIZE) -> Image.Image:
    return Image.new("RGB", (width, height), (number, number, number))


def fill(root: Path, classes: Mapping[str, Iterable[int]]) -> None:
    for name, numbers in classes.items():
        (root / name).mkdir(parents=True)
        for number in numbers:
            picture(number).save(root / name / f"{number:03d}.png")


def numbers_of(batches: Iterable[Any]) -> list[int]:
    """Numbers of the images of evaluation or calibration batches, in their order."""
    images = torch.cat([batch if isinstance(batch, Tensor) else batch[0] for batch in batches])
    return [round(float(image.mean()) * 255) for image in images]


def whole_split(data: Data, split: Any) -> tuple[Tensor, Tensor]:
    images, labels = zip(*data.evaluation(split), strict=True)
    return torch.cat(images), torch.cat(labels)


def splits_of(data: Data) -> tuple[list[int], list[int], list[int]]:
    return numbers_of(data.calibration()), numbers_of(data.evaluation("search")), numbers_of(data.evaluation("test"))


def opened(root: Path | None, preprocessing: dict[str, Any] = RGB, **options: Any) -> Data:
    config = {"data_dir": str(root) if root else None, "workers": 0, "calibration_size": 10_000, **options}
    return Data(DataConfig(**config), preprocessing)


def same(one: Iterable[Any], other: Iterable[Any]) -> bool:
    return all(torch.equal(a, b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True))
