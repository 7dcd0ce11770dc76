"""Which images belong to which split: folders, named splits, hold-outs, and what is refused."""

import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from local_images import GREY, SIZE, fill, numbers_of, opened, picture, splits_of, whole_split
from PIL import Image
from sklearn.datasets import load_digits

from objectives.data.config import DataConfig
from spaces.errors import ConfigError, DataError


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
        opened(split_folder, **dict[str, Any]({option: "vall"}))


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
        ({"train/a": [1], "train/b": [2], "val/a": [3]}, "test split has 1 classes, train has 2: b in train alone"),
        ({"train/a": [1], "train/b": [2], "val/a": [3], "val/c": [4]}, "b in train alone; c in val alone"),
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

    monkeypatch.setattr("objectives.data.splits.create_dataset", create)
    with pytest.raises(DataError, match="the same in another order"):
        opened(tmp_path, dataset="hfds/any")


def test_class_map_may_merge_folders(tmp_path: Path) -> None:
    fill(tmp_path / "images", {"cat": [1, 2], "dog": [3, 4], "puppy": [5, 6]})
    (tmp_path / "map.txt").write_text("cat\ndog\npuppy\n")
    assert opened(tmp_path / "images", class_map=str(tmp_path / "map.txt")).num_classes == 3


def test_unreadable_images_are_refused_at_once(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="4 of 4 images of the train split cannot be read"):
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


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch_size", 0),
        ("eval_batch_size", 0),
        ("calibration_size", 0),
        ("search_size", 0.0),
        ("crop_padding", -1),
        ("holdout", "start"),
        ("least_images", 0),
        ("class_order", "natural"),
        ("scale", (0.5, 2.0)),
    ],
)
def test_option_out_of_range_is_refused(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option):
        DataConfig(**{option: value})


def test_an_order_is_for_class_folders_alone() -> None:
    with pytest.raises(ConfigError, match="class_order is for image folders, not for dataset='digits'"):
        DataConfig(dataset="digits", class_order="torchvision")


def test_names_of_classes_are_in_the_order_of_their_labels(split_folder: Path, tmp_path: Path) -> None:
    assert opened(split_folder).class_names == ["cat", "dog"]
    assert opened(None, GREY, dataset="digits").class_names == [str(digit) for digit in range(10)]
    other_order = tmp_path / "order.txt"
    other_order.write_text("dog\ncat\n")
    assert opened(split_folder, class_map=str(other_order)).class_names == ["dog", "cat"]


def test_other_pictures_of_the_same_names_have_another_mark(split_folder: Path, tmp_path: Path) -> None:
    """What was measured on the pictures before is not taken for what these would give; a copy of them has the same."""
    before, copy = opened(split_folder), tmp_path / "copy"
    marks = before.mark_of("train", "search"), before.mark_of("test")
    shutil.copytree(split_folder, copy, copy_function=shutil.copyfile)
    assert (opened(copy).mark, opened(copy).mark_of("test")) == marks
    path = next((copy / "val").rglob("*.png"))
    Image.effect_noise((SIZE, SIZE), 90).convert("RGB").save(path)
    assert opened(copy).mark == marks[0]
    assert opened(copy).mark_of("test") != marks[1]
    path = next((copy / "train").rglob("*.png"))
    Image.effect_noise((SIZE, SIZE), 90).convert("RGB").save(path)
    assert opened(copy).mark != marks[0]
