"""Batches and transforms of real files on disk: every image carries its own number as its brightness."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from local_images import GREY, RGB, SIZE, numbers_of, opened, picture, same
from PIL import Image

from objectives.data.config import DataConfig
from objectives.data.loaders import Data
from objectives.runtime.distributed import Group
from spaces.errors import DataError


def test_grey_images_become_rgb_for_an_rgb_model(idx_folder: Path) -> None:
    images, _ = next(opened(idx_folder, RGB, dataset="torch/fashion_mnist").evaluation("test"))
    assert images.shape == (6, 3, SIZE, SIZE)


def test_rgb_images_become_grey_for_a_grey_model(tmp_path: Path) -> None:
    """Luma of red, by ITU-R 601: 0.299 x 255."""
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (SIZE, SIZE), (255, 0, 0)).save(tmp_path / name / f"{number}.png")
    images, _ = next(opened(tmp_path, GREY).evaluation("test"))
    assert images.shape == (1, 1, SIZE, SIZE)
    assert float(images.mean()) == pytest.approx(0.299, abs=1 / 255)


def test_other_numbers_of_channels_are_refused(split_folder: Path) -> None:
    with pytest.raises(DataError, match="4 channels"):
        opened(split_folder, RGB | {"input_size": [4, SIZE, SIZE]})


def test_training_batches_depend_on_the_seed_alone() -> None:
    data = opened(None, GREY, dataset="digits", batch_size=16, aa="rand-m9-mstd0.5")
    first = list(data.training(3, seed=0))
    torch.manual_seed(99)
    random.seed(99)
    again = []
    for batch in data.training(3, seed=0):
        again.append(batch)
        torch.rand(7), random.random(), np.random.rand()  # as dropout in a model of another width would
    assert same(first, again)
    assert not same(first, list(data.training(3, seed=1)))


@pytest.mark.slow
def test_training_batches_depend_on_the_seed_alone_with_workers(split_folder: Path) -> None:
    data = opened(split_folder, batch_size=16, workers=2, aa="rand-m9-mstd0.5")
    first, again, other = (list(data.training(3, seed)) for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


def test_training_leaves_the_random_numbers_of_others_alone() -> None:
    data = opened(None, GREY, dataset="digits", batch_size=16)
    drawn = []
    for steps in (1, 4):
        torch.manual_seed(0)
        random.seed(0)
        list(data.training(steps, seed=5))
        drawn.append((float(torch.rand(1)), random.random()))
    assert drawn[0] == drawn[1]


def test_training_goes_on_past_an_epoch(split_folder: Path) -> None:
    batches = list(opened(split_folder, batch_size=16).training(6, seed=0))
    assert [len(labels) for _, labels in batches] == [16] * 6


def test_an_epoch_sees_every_image_once(split_folder: Path) -> None:
    data = opened(split_folder, batch_size=12, scale=(1.0, 1.0), hflip=0.0)
    epochs = [numbers_of(list(data.training(6, seed=0))[start : start + 3]) for start in (0, 3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(numbers_of(data.calibration()))
    assert epochs[0] != epochs[1]


def test_an_epoch_of_a_long_fine_tune_sees_every_training_image_once(split_folder: Path) -> None:
    """Constant images stay what they are under crops: 36 for training, 4 held out, 9 batches of 4."""
    data = opened(split_folder, batch_size=4)
    held_out = numbers_of(data.evaluation("search"))
    epochs = [numbers_of(data.epoch(number, seed=0)) for number in range(2)]
    assert data.epoch_steps == 9
    assert [sorted(epoch) for epoch in epochs] == [sorted(set(range(40)) - set(held_out))] * 2
    assert epochs[0] != epochs[1]
    assert epochs[1] == numbers_of(data.epoch(1, seed=0))
    shares = [numbers_of(data.epoch(1, seed=0, group=Group(rank=rank, size=2))) for rank in range(2)]
    assert [number for pair in zip(*shares, strict=True) for number in pair] == epochs[1]


def test_an_epoch_leaves_out_a_batch_that_is_not_full(split_folder: Path) -> None:
    """36 images are 7 batches of 5; one batch of 50 is filled from a second pass."""
    assert len(list(opened(split_folder, batch_size=5).epoch(0, seed=0))) == 7
    assert [len(labels) for _, labels in opened(split_folder, batch_size=50).epoch(0, seed=0)] == [50]


@pytest.mark.parametrize("variation", [{"aa": "rand-m9-mstd0.5-inc1"}, {"reprob": 1.0}])
@pytest.mark.parametrize("preprocessing", [RGB, GREY])
def test_an_epoch_varies_its_images(idx_folder: Path, preprocessing: dict[str, Any], variation: dict[str, Any]) -> None:
    """The configuration's own variation leaves constant images constant."""
    data = opened(idx_folder, preprocessing, dataset="torch/fashion_mnist", batch_size=9)
    plain, varied = (torch.cat([images for images, _ in data.epoch(0, 0, **given)]) for given in ({}, variation))
    assert float(plain.flatten(1).std(dim=1).max()) < 1e-6
    assert float(varied.flatten(1).std(dim=1).max()) > 0.01
    assert plain.shape == varied.shape


def test_batch_size_may_be_given_by_the_caller(split_folder: Path) -> None:
    assert [len(labels) for _, labels in opened(split_folder).training(2, seed=0, batch_size=5)] == [5, 5]


@pytest.mark.parametrize(("wanted", "given"), [(10, 10), (30, 30), (1000, 36)])
def test_calibration_has_its_size(split_folder: Path, wanted: int, given: int) -> None:
    data = opened(split_folder, calibration_size=wanted, eval_batch_size=8)
    numbers = numbers_of(data.calibration())
    assert len(set(numbers)) == len(numbers) == given
    assert numbers == numbers_of(data.calibration())
    assert numbers_of(data.calibration(7)) == numbers[:7]
    assert not set(numbers) & set(numbers_of(data.evaluation("search")))


def test_crop_padding_shifts_images_without_scaling() -> None:
    """Every training image is a window of its padded self."""
    config = {"dataset": "digits", "batch_size": 64, "hflip": 0.0, "crop_padding": 2}
    images, _ = next(opened(None, GREY, **config).training(1, seed=0))
    train = torch.cat(list(opened(None, GREY, dataset="digits").calibration()))
    padded = torch.nn.functional.pad(train, (2, 2, 2, 2))
    windows = torch.cat([padded[..., top : top + SIZE, left : left + SIZE] for top in range(5) for left in range(5)])
    known = {window.numpy().tobytes() for window in windows}
    shifted = {image.numpy().tobytes() for image in train}
    assert all(image.numpy().tobytes() in known for image in images)
    assert any(image.numpy().tobytes() not in shifted for image in images)


def test_crop_padding_keeps_the_proportions_of_wide_images(tmp_path: Path) -> None:
    """With nothing to shift, the image as it is: a ramp from left to right, twice as wide as high."""
    ramp = Image.fromarray(np.tile(np.arange(2 * SIZE, dtype=np.uint8) * 10, (SIZE, 1)))
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(3):
            ramp.save(tmp_path / name / f"{number}.png")
    wide = GREY | {"input_size": [1, SIZE, 2 * SIZE]}
    images, _ = next(opened(tmp_path, wide, crop_padding=1, hflip=0.0, batch_size=32).training(1, seed=0))
    steps = (images[:, 0, SIZE // 2, 2:-1] - images[:, 0, SIZE // 2, 1:-2]) * 255
    assert torch.allclose(steps, torch.full_like(steps, 10.0), atol=1e-3)


def test_crop_padding_is_for_images_of_the_models_size(split_folder: Path) -> None:
    with pytest.raises(DataError, match=r"16x16, but the images in .* have 8x8"):
        opened(split_folder, RGB | {"input_size": [3, 16, 16]}, crop_padding=2)


@pytest.mark.parametrize("label", [-1, 7])
def test_label_out_of_range_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: int) -> None:
    """The hub marks hidden labels by -1; a data set that tells no classes may have more than the model."""

    class Unlabelled(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return picture(index), label

    monkeypatch.setattr("objectives.data.splits.create_dataset", lambda *args, **options: Unlabelled())
    data = Data(DataConfig(dataset="hfds/any", data_dir=str(tmp_path), workers=0), RGB, classes=7)
    assert data.num_classes is None
    with pytest.raises(DataError, match=f"test split has the label {label}: labels must be from 0 to 6"):
        next(data.evaluation("test"))
    with pytest.raises(DataError, match=f"train split has the label {label}"):
        next(data.training(1, seed=0))
