"""Splits, batches and transforms of real files on disk: every image carries its own number as its brightness."""

import io
import json
import random
import struct
import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from objectives.data import Data
from objectives.splits import DataConfig
from spaces.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # timm leaves closing to the collector

SIZE = 8
# As they are: no crop, no scaling but to [0, 1], so that a batch tells which images it holds.
RGB: dict[str, Any] = {
    "input_size": [3, SIZE, SIZE], "interpolation": "bilinear", "mean": [0.0] * 3, "std": [1.0] * 3,
    "crop_pct": 1.0, "crop_mode": "center",
}  # fmt: skip
GREY = RGB | {"input_size": [1, SIZE, SIZE], "mean": [0.0], "std": [1.0]}


def picture(number: int, width: int = SIZE, height: int = SIZE) -> Image.Image:
    return Image.new("RGB", (width, height), (number, number, number))


def fill(root: Path, classes: dict[str, Iterable[int]]) -> None:
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


@pytest.fixture(scope="module")
def split_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 20 + 20 images, val/ with 5 + 5."""
    root = tmp_path_factory.mktemp("split")
    fill(root / "train", {"cat": range(20), "dog": range(20, 40)})
    fill(root / "val", {"cat": range(100, 105), "dog": range(105, 110)})
    return root


def test_split_folder_keeps_val_for_reports(split_folder: Path) -> None:
    data = opened(split_folder)
    train, search, test = splits_of(data)
    assert test == list(range(100, 110))
    assert len(search) == 4, "a tenth of 40"
    assert sorted(train + search) == list(range(40))
    assert (data.size("train"), data.size("search"), data.size("test"), data.num_classes) == (36, 4, 10, 2)


def test_labels_follow_the_class_folders(split_folder: Path) -> None:
    images, labels = next(opened(split_folder).evaluation("test"))
    assert labels.tolist() == [0] * 5 + [1] * 5
    assert labels.dtype == torch.int64
    assert (images.shape, images.dtype) == ((10, 3, SIZE, SIZE), torch.float32)


def test_search_size_may_be_a_number_of_images(split_folder: Path) -> None:
    assert opened(split_folder, search_size=7).size("search") == 7


def test_split_seed_decides_which_images_are_held_out(split_folder: Path) -> None:
    held_out = [numbers_of(opened(split_folder, split_seed=seed).evaluation("search")) for seed in (0, 0, 1)]
    assert held_out[0] == held_out[1] != held_out[2]


def test_class_folders_alone_give_three_disjoint_splits(tmp_path: Path) -> None:
    fill(tmp_path, {"a": range(20), "b": range(20, 50)})
    train, search, test = splits_of(opened(tmp_path, search_size=0.2))
    assert (len(train), len(search), len(test)) == (30, 10, 10)
    assert sorted(train + search + test) == list(range(50))


def test_synonyms_of_split_folders_are_found(tmp_path: Path) -> None:
    fill(tmp_path / "training", {"a": range(10), "b": range(10, 20)})
    fill(tmp_path / "valid", {"a": [100], "b": [101]})
    train, search, test = splits_of(opened(tmp_path))
    assert sorted(train + search) == list(range(20))
    assert test == [100, 101]


def test_test_folder_without_classes_is_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, {"train/a": range(10), "train/b": range(10, 20), "val/a": [100], "val/b": [101], "test": [200]})
    assert numbers_of(opened(tmp_path).evaluation("test")) == [100, 101]


def test_named_search_folder_is_not_the_test_folder(tmp_path: Path) -> None:
    fill(tmp_path, {f"{split}/{name}": [number] for split, number in (("train", 1), ("test", 3), ("val", 5)) for name in "ab"})
    data = opened(tmp_path, search_split="test")
    assert (set(numbers_of(data.evaluation("search"))), set(numbers_of(data.evaluation("test")))) == ({3}, {5})


@pytest.mark.parametrize("option", ["train_split", "search_split", "val_split"])
def test_mistyped_split_folder_is_refused(split_folder: Path, option: str) -> None:
    """timm would take the whole folder instead, images to report on included."""
    with pytest.raises(DataError, match=r"no folder 'vall'.*it has train, val"):
        opened(split_folder, **{option: "vall"})


def test_same_split_twice_is_refused(split_folder: Path) -> None:
    with pytest.raises(DataError, match="search and test splits are the same images"):
        opened(split_folder, search_split="val", val_split="val")


def test_unknown_split_names_are_not_merged(tmp_path: Path) -> None:
    fill(tmp_path / "one", {"a": [1], "b": [2]})
    fill(tmp_path / "two", {"a": [3], "b": [4]})
    with pytest.raises(DataError, match=r"one, two hold folders in turn.*--train-split"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({}, "no folders"),
        ({"a": [], "b": []}, "(?i)found 0 images"),
        ({"a": range(5)}, "1 class .a.: at least two"),
        ({"train/a": [1], "train/b": [2], "val/a": [3]}, r"test split has 1 classes, train has 2 \(differing in b\)"),
        ({"train/a": [1], "train/b": [2], "val/a": [3], "val/c": [4]}, r"differing in b, c"),
    ],
    ids=["empty", "no image", "one class", "fewer classes", "other classes"],
)
def test_unusable_folders_are_refused(tmp_path: Path, folders: dict[str, Iterable[int]], message: str) -> None:
    fill(tmp_path, folders)
    with pytest.raises(DataError, match=message):
        opened(tmp_path)


def test_classes_in_another_order_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder sorts its classes; a hub data set may not."""

    class Listed(torch.utils.data.Dataset[Any]):
        def __init__(self, names: str) -> None:
            self.class_to_idx = {name: label for label, name in enumerate(names)}

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return picture(index), index % 2

    def create(name: str, split: str, **options: Any) -> Listed:
        return Listed("ab" if split == "train" else "ba")

    monkeypatch.setattr("objectives.splits.create_dataset", create)
    with pytest.raises(DataError, match="the same in another order"):
        opened(tmp_path, dataset="hfds/any")


def test_class_map_may_merge_folders(tmp_path: Path) -> None:
    fill(tmp_path / "images", {"cat": [1, 2], "dog": [3, 4], "puppy": [5, 6]})
    (tmp_path / "map.txt").write_text("cat\ndog\npuppy\n")
    assert opened(tmp_path / "images", class_map=str(tmp_path / "map.txt")).num_classes == 3


def test_unreadable_images_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.data.dataset._ERROR_RETRY", 2)
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot read the images"):
        opened(tmp_path)


@pytest.mark.parametrize("missing", ["nowhere", None])
def test_missing_folder_is_refused(tmp_path: Path, missing: str | None) -> None:
    with pytest.raises(DataError, match=r"no folder at|give --data-dir"):
        opened(tmp_path / missing if missing else None)


@pytest.mark.parametrize("dataset", ["cifar10", "ImageFolder", "Torch/cifar10"])
def test_unknown_data_set_is_refused(dataset: str) -> None:
    """timm would read the folder as class folders, whatever its splits are."""
    with pytest.raises(ConfigError, match=r"begin with torch/"):
        DataConfig(dataset=dataset)


def test_digits_are_split_once_and_stratified() -> None:
    data = opened(None, GREY, dataset="digits")
    split = {name: whole_split(data, name) for name in ("search", "test")}
    assert [len(images) for images, _ in split.values()] == [297, 360]
    train = torch.cat(list(data.calibration()))
    assert (len(train), data.num_classes) == (1140, 10)
    bunch = load_digits()
    whole = Counter(np.round(image * 255 / 16).astype(np.uint8).tobytes() for image in bunch.images)
    found = torch.cat([train, *(images for images, _ in split.values())])
    assert Counter((image * 255).round().to(torch.uint8).numpy().tobytes() for image in found) == whole
    for _, labels in split.values():
        expected = np.bincount(bunch.target) * len(labels) / len(bunch.target)
        assert np.abs(np.bincount(labels.numpy()) - expected).max() <= 1


@pytest.fixture(scope="module")
def idx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images to train (0..29) and 6 to test (200..205), as torchvision keeps Fashion-MNIST."""
    root = tmp_path_factory.mktemp("idx")
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, numbers in (("train", range(30)), ("t10k", range(200, 206))):
        pixels = b"".join(bytes([number]) * SIZE * SIZE for number in numbers)
        labels = bytes(number % 10 for number in numbers)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, len(numbers), SIZE, SIZE) + pixels)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, len(numbers)) + labels)
    return root


def test_holdout_takes_the_end_of_the_split(idx_folder: Path) -> None:
    data = opened(idx_folder, GREY, dataset="torch/fashion_mnist", holdout="end", search_size=6)
    train, search, test = splits_of(data)
    assert (sorted(train), search, test) == (list(range(24)), list(range(24, 30)), list(range(200, 206)))
    assert data.num_classes == 10
    assert next(data.evaluation("search"))[1].tolist() == [number % 10 for number in range(24, 30)]


def test_synonym_of_the_test_split_is_no_search_split(idx_folder: Path) -> None:
    """torchvision has two splits; timm gives its test images for every name but train."""
    with pytest.raises(DataError, match="search and test splits are the same images"):
        opened(idx_folder, GREY, dataset="torch/fashion_mnist", search_split="val")


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


def same(one: Iterable[Any], other: Iterable[Any]) -> bool:
    return all(torch.equal(a, b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True))


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


def test_batch_size_may_be_given_by_the_caller(split_folder: Path) -> None:
    assert [len(labels) for _, labels in opened(split_folder).training(2, seed=0, batch_size=5)] == [5, 5]


@pytest.mark.parametrize(("wanted", "given"), [(10, 10), (30, 30), (1000, 36)])
def test_calibration_has_its_size(split_folder: Path, wanted: int, given: int) -> None:
    data = opened(split_folder, calibration_size=wanted, eval_batch_size=8)
    numbers = numbers_of(data.calibration())
    assert len(set(numbers)) == len(numbers) == given
    assert numbers == numbers_of(data.calibration())
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

    monkeypatch.setattr("objectives.splits.create_dataset", lambda *args, **options: Unlabelled())
    data = Data(DataConfig(dataset="hfds/any", data_dir=str(tmp_path), workers=0), RGB, classes=7)
    assert data.num_classes is None
    with pytest.raises(DataError, match=f"test split has the label {label}: labels must be from 0 to 6"):
        next(data.evaluation("test"))
    with pytest.raises(DataError, match=f"train split has the label {label}"):
        next(data.training(1, seed=0))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of 10 images to train, one of 6 to search on, one of 4 to report on."""
    pytest.importorskip("webdataset")
    root = tmp_path_factory.mktemp("wds")
    content = {"train-0": range(10), "train-1": range(10, 20), "search-0": range(100, 106), "validation-0": range(200, 204)}
    for name, numbers in content.items():
        with tarfile.open(root / f"{name}.tar", "w") as tar:
            for number in numbers:
                encoded = io.BytesIO()
                picture(number).save(encoded, "PNG")
                for suffix, raw in (("png", encoded.getvalue()), ("cls", str(number % 2).encode())):
                    entry = tarfile.TarInfo(f"{number:03d}.{suffix}")
                    entry.size = len(raw)
                    tar.addfile(entry, io.BytesIO(raw))
    splits = {}
    for split in ("train", "search", "validation"):
        sizes = {f"{name}.tar": len(numbers) for name, numbers in content.items() if name.startswith(split)}
        lists = {"filenames": list(sizes), "shard_lengths": list(sizes.values())}
        splits[split] = {"name": split, "num_samples": sum(sizes.values()), **lists}
    (root / "_info.json").write_text(json.dumps({"splits": splits}))
    return root


def streamed(root: Path, **options: Any) -> Data:
    return opened(root, dataset="wds/local", **{"search_split": "search", "batch_size": 10, "workers": 1, **options})


@pytest.mark.slow
def test_shards_are_streamed_by_split(shards: Path) -> None:
    data = streamed(shards)
    train, search, test = splits_of(data)
    assert (sorted(train), search, test) == (list(range(20)), list(range(100, 106)), list(range(200, 204)))
    assert (data.size("train"), data.size("search"), data.num_classes) == (None, None, None)
    assert next(data.evaluation("test"))[1].tolist() == [0, 1, 0, 1]


@pytest.mark.slow
def test_stream_goes_on_past_an_epoch_and_follows_the_seed(shards: Path) -> None:
    data = streamed(shards, scale=(1.0, 1.0))
    runs = [[(images, labels) for images, labels in data.training(5, seed)] for seed in (0, 0, 1)]
    assert [len(labels) for _, labels in runs[0]] == [10] * 5
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])
    epochs = [numbers_of(runs[0][start : start + 2]) for start in (0, 2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    assert epochs[0] != epochs[1]


@pytest.mark.slow
def test_every_epoch_shuffles_within_a_shard(shards: Path) -> None:
    batches = streamed(shards, train_split="train-0.tar|10", scale=(1.0, 1.0)).training(3, seed=0)
    epochs = [numbers_of([batch]) for batch in batches]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # on a machine of two cores
def test_more_workers_than_shards_lose_no_image(shards: Path) -> None:
    data = streamed(shards, workers=3)
    assert sorted(numbers_of(data.evaluation("search"))) == list(range(100, 106))
    assert [len(labels) for _, labels in data.training(5, seed=0)] == [10] * 5


@pytest.mark.slow
def test_stream_calibrates_on_as_many_images_as_asked(shards: Path) -> None:
    data = streamed(shards, calibration_size=13, eval_batch_size=5)
    numbers = numbers_of(data.calibration())
    assert len(numbers) == 13
    assert numbers == numbers_of(data.calibration())


def test_stream_needs_a_search_split_of_its_own(shards: Path) -> None:
    with pytest.raises(DataError, match=r"streamed.*--search-split"):
        streamed(shards, search_split=None)
    with pytest.raises(DataError, match="train and search splits are the same"):
        streamed(shards, search_split="train")


def test_unknown_shard_split_is_refused(shards: Path) -> None:
    with pytest.raises(DataError, match="split 'serch'"):
        streamed(shards, search_split="serch")


@pytest.mark.slow
def test_hub_data_set_on_local_files(tmp_path: Path) -> None:
    """A folder in the layout of the `datasets` package; --data-dir is its cache."""
    pytest.importorskip("datasets")
    fill(tmp_path / "set" / "train", {"cat": range(10), "dog": range(10, 20)})
    fill(tmp_path / "set" / "validation", {"cat": [100, 101], "dog": [102]})
    data = opened(tmp_path / "cache", dataset=f"hfds/{tmp_path / 'set'}")
    train, search, test = splits_of(data)
    assert (len(search), sorted(train + search), test) == (2, list(range(20)), [100, 101, 102])
    assert data.num_classes == 2
    assert next(data.evaluation("test"))[1].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch_size", 0),
        ("eval_batch_size", 0),
        ("calibration_size", 0),
        ("search_size", 0.0),
        ("crop_padding", -1),
        ("holdout", "start"),
        ("scale", (0.5, 2.0)),
    ],
)
def test_option_out_of_range_is_refused(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option):
        DataConfig(**{option: value})
