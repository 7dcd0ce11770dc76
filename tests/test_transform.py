"""The transform of evaluation is timm's, to the bit, for every way to crop and to resize."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from objectives.data.batches import View, loaded
from objectives.pictures.reading import Reading
from objectives.pictures.sources import Files
from objectives.pictures.transform import evaluation_transform
from spaces.errors import DataError
from spaces.models.config import CROP_MODES, INTERPOLATIONS

INPUTS = ((16, 16), (15, 15), (12, 18))
SHARES = (0.1, 0.875, 0.95, 1.0, 1.15, 10.0)  # of the resized image; above 1, what is missing is padded
IMAGES = ((16, 16), (15, 15), (40, 30), (31, 17), (7, 9), (1, 23))


def described(size: Sequence[int], mode: str, interpolation: str, share: float, channels: int) -> dict[str, Any]:
    mean, std = [0.3, 0.35, 0.4][:channels], [0.37, 0.36, 0.229][:channels]
    given = {"input_size": [channels, *size], "mean": mean, "std": std, "crop_pct": share}
    return {**given, "crop_mode": mode, "interpolation": interpolation}


def of_noise(size: tuple[int, int], mode: str) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("picture", ["RGB", "L"])
@pytest.mark.parametrize("mode", CROP_MODES)
def test_every_number_is_that_of_timm(mode: str, picture: str) -> None:
    channels = len(Image.new(picture, (1, 1)).getbands())
    compared = 0
    for size, interpolation, share in product(INPUTS, INTERPOLATIONS, SHARES):
        given = described(size, mode, interpolation, share, channels)
        ours = evaluation_transform(given)
        options = {name: value for name, value in given.items() if name != "input_size"}
        theirs = create_transform(tuple(given["input_size"]), **options, is_training=False)
        for image in (of_noise(each, picture) for each in IMAGES):
            try:
                expected = theirs(image)
            except ValueError:  # a share that leaves no pixel of an image
                continue
            found = ours(image)
            assert found.shape == (channels, *size)
            assert torch.equal(found, expected), (given, image.size)
            compared += 1
    assert compared > 300


@pytest.mark.parametrize(
    ("size", "mode", "is_timm"),
    [((16, 16), "center", False), ((12, 18), "squash", False), ((12, 18), "center", True), ((16, 16), "border", True)],
)
def test_timm_is_asked_only_for_its_own_transforms(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], mode: str, is_timm: bool
) -> None:
    asked = list[object]()
    monkeypatch.setattr("timm.data.create_transform", lambda size, **options: asked.append(size))
    evaluation_transform(described(size, mode, "bicubic", 0.9, 3))
    assert asked == ([(3, *size)] if is_timm else [])


def test_a_picture_of_which_no_pixel_would_be_left_is_told(tmp_path: Path) -> None:
    """Slim enough to be read, too slim to be resized whole; of training images the loader's error would be a traceback."""
    Image.new("RGB", (1, 900)).save(tmp_path / "slim\n.png")
    transform, reading = evaluation_transform(described((16, 16), "border", "bicubic", 1.0, 3)), Reading(mode="RGB")
    view = View(Files([(str(tmp_path / "slim\n.png"), 0)], None), torch.tensor([0]), reading, transform)
    assert isinstance(view[0], DataError)
    words = r"slim\\n\.png, 1x900 pixels, cannot be resized for the model \(.*\): leave it out"
    with pytest.raises(DataError, match=words):
        next(loaded(view, batch_size=1))
