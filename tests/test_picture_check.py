"""All pictures of all splits: what is left out, what moves where, what is remembered, and what is said."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from local_images import GREY, RGB, fill, numbers_of, opened, picture, splits_of
from local_runs import Fails
from PIL import Image
from test_pictures import bomb, saved, with_text
from torch.utils.data import Dataset

from objectives.data.config import DataConfig
from objectives.data.loaders import Data
from objectives.pictures import check as picture_check
from objectives.pictures.reading import Reading
from spaces.errors import DataError

NUMBERS = range(0, 200, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """100 images to train on in two classes, 40 to report on; every image carries its number."""
    fill(tmp_path / "images" / "train", {"a": NUMBERS[:50], "b": NUMBERS[50:]})
    fill(tmp_path / "images" / "val", {"a": range(201, 221), "b": range(221, 241)})
    return tmp_path / "images"


def spoil(path: Path) -> None:
    """Its header is whole, most of its pixels are missing."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    path.write_bytes(saved(noise, "png")[:-3000])


def paths(folder: Path, split: str) -> list[Path]:
    return sorted((folder / split).rglob("*.png"))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_left_out_and_replaced_by_nothing(folder: Path, workers: int) -> None:
    bad = paths(folder, "train")[10:13] + paths(folder, "val")[5:6]
    for path in bad:
        spoil(path)
    data = opened(folder, workers=workers, batch_size=10)
    train, search, test = splits_of(data)
    gone = {NUMBERS[index] for index in (10, 11, 12)}
    assert sorted(train + search) == sorted(set(NUMBERS) - gone)
    assert len(set(train + search)) == len(train + search) == 97
    assert sorted(test) == sorted(set(range(201, 241)) - {206})
    assert (data.size("train"), data.size("search"), data.size("test")) == (len(train), len(search), 39)
    assert {name: why for bad in data.checked.left_out.values() for name, why in bad.items()}.keys() == set(map(str, bad))
    trained = torch.cat([images for images, _ in data.training(20, seed=0)])
    assert {round(float(image.mean()) * 255) for image in trained} <= set(train)


def test_a_file_that_goes_bad_moves_no_other_image(folder: Path) -> None:
    """In one folder that all three splits are held out of: images stay in their split, whatever else can be read."""
    root = folder / "train"
    before = [set(numbers) for numbers in splits_of(opened(root, search_size=0.2))]
    for index in (3, 40, 77):
        spoil(paths(folder, "train")[index])
    after = [set(numbers) for numbers in splits_of(opened(root, search_size=0.3 - 0.1))]
    gone = {NUMBERS[index] for index in (3, 40, 77)}
    assert after == [numbers - gone for numbers in before]
    assert sum(map(len, after)) == 97


def test_more_than_5_percent_are_refused_with_names_and_reasons(folder: Path) -> None:
    for path in paths(folder, "val")[:2]:
        path.write_bytes(b"")
    assert opened(folder).size("test") == 38
    paths(folder, "val")[2].write_bytes(bomb())
    with pytest.raises(DataError) as caught:
        opened(folder)
    assert "3 of 40 images of the test split cannot be read, more than 5%: " in str(caught.value)
    for path in paths(folder, "val")[:3]:
        assert str(path) in str(caught.value)
    assert "(the file is empty)" in str(caught.value)
    assert "3600000000 pixels" in str(caught.value)


def test_of_many_training_images_the_header_and_the_end_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text behind the pixels is seen by decoding alone."""
    late = with_text(saved(picture(0), "png"), last=True)
    cut, odd = paths(folder, "train")[::99]
    spoil(cut)
    odd.write_bytes(late)
    paths(folder, "val")[0].write_bytes(late)
    left_out = opened(folder, holdout="end", search_size=20).checked.left_out
    assert {split: list(bad) for split, bad in left_out.items()} == {
        "train": [str(cut)], "search": [str(odd)], "test": [str(paths(folder, "val")[0])],
    }  # fmt: skip
    odd.rename(cut)
    monkeypatch.setattr(picture_check, "DECODED", 50)
    data = opened(folder, holdout="end", search_size=20)
    assert list(data.checked.left_out) == ["test"]
    with pytest.raises(DataError) as caught:
        list(data.calibration())
    assert f"{cut} cannot be read as an image: Decompressed data too large" in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_gone_while_the_search_runs_is_one_line(folder: Path, workers: int) -> None:
    data = opened(folder, workers=workers)
    gone = paths(folder, "val")[7]
    gone.unlink()
    with pytest.raises(DataError) as caught:
        list(data.evaluation("test"))
    assert str(caught.value) == f"no image at {gone}"


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were looked at."""
    names, probe = list[str](), Reading.probe

    def told(reading: Any, path: Path, decode: bool) -> Any:
        names.append(path.name)
        return probe(reading, path, decode)

    monkeypatch.setattr(Reading, "probe", told)
    return names


def test_unchanged_files_are_not_looked_at_again(folder: Path, tmp_path: Path, looked: list[str]) -> None:
    stored = tmp_path / "runs" / "one" / "factors" / "pictures.json"
    spoil(paths(folder, "train")[0])
    config = DataConfig(data_dir=str(folder), workers=0)
    first = Data(config, RGB, checked=stored).checked
    assert (len(looked), stored.exists()) == (140, False), "nothing is written before the run is accepted"
    first.save(stored)
    looked.clear()
    again = Data(config, RGB, checked=stored).checked
    beside = Data(config, RGB, checked=tmp_path / "runs" / "two" / "factors" / "pictures.json").checked
    assert not looked
    assert first.left_out == again.left_out == beside.left_out
    assert first.warnings() == again.warnings()
    picture(3).save(paths(folder, "val")[-1])
    assert Data(config, RGB, checked=stored).size("test") == 40
    assert sorted(looked) == [f"{number}.png" for number in range(221, 241)], "its folder alone"


def test_names_may_have_any_bytes(folder: Path, tmp_path: Path) -> None:
    """They are read, remembered and reported, and reach no terminal as they are."""
    good, bad = (folder / "train" / "a" / f"{os.fsdecode(name)}.png" for name in (b"\xff\xfe", b"\x1b[31m\n\xff"))
    picture(250).save(good)
    bad.write_bytes(b"")
    stored, config = tmp_path / "pictures.json", DataConfig(data_dir=str(folder), workers=0)
    Data(config, RGB, checked=stored).checked.save(stored)
    data = Data(config, RGB, checked=stored)
    assert not data.checked.is_new
    assert 250 in numbers_of([*data.calibration(), *(images for images, _ in data.evaluation("search"))])
    (warning,) = data.checked.warnings()
    assert warning.isprintable()
    assert "\\x1b[31m\\n\\udcff.png (the file is empty)" in warning
    assert json.dumps(data.checked.report()).isascii()
    assert data.mark is not None


DAMAGE: list[Callable[[str], str]] = [
    lambda text: "",
    lambda text: text[: len(text) // 2],
    lambda text: "[]",
    lambda text: text.replace("\\\"bad\\\": {\\\"0\\\"", "\\\"bad\\\": {\\\"1\\\""),
    lambda text: json.dumps({**json.loads(text), "groups": "null"}),
    lambda text: "[" * 100_000,
    lambda text: '{"sha256": 5, "groups": 5}',
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_memory_is_not_believed(folder: Path, tmp_path: Path, damage: Callable[[str], str]) -> None:
    stored, bad = tmp_path / "pictures.json", paths(folder, "train")[0]
    spoil(bad)
    config = DataConfig(data_dir=str(folder), workers=0)
    Data(config, RGB, checked=stored).checked.save(stored)
    text = stored.read_text()
    assert damage(text) != text
    stored.write_text(damage(text))
    assert Data(config, RGB, checked=stored).checked.left_out["train"].keys() == {str(bad)}


def test_deep_and_transparent_pictures_are_told(folder: Path) -> None:
    deep = np.linspace(0, 4000, 64, dtype=np.uint16).reshape(8, 8)
    clear = picture(9).convert("RGBA")
    clear.putalpha(7)
    Image.fromarray(deep).save(paths(folder, "train")[0])
    Image.fromarray(deep).save(paths(folder, "val")[0])
    clear.save(paths(folder, "val")[1])
    checked = opened(folder).checked
    assert checked.lines() == [
        "2 pictures of more than 8 bits: values from 0 to 65535 are read as black to white (--pixel-range)",
        "1 picture with transparent parts: laid over white (--background)",
    ]
    (warning,) = checked.warnings()
    assert "no value above 4000, far below 65535" in warning
    assert "try --pixel-range 0 4095" in warning
    fitting = opened(folder, pixel_range=(0, 4095), background="black").checked
    assert not fitting.warnings()
    assert "values from 0 to 4095" in fitting.lines()[0]
    assert "laid over black" in fitting.lines()[1]
    (narrow,) = opened(folder, pixel_range=(100, 255), background="ignored").checked.warnings()
    assert "values from 0 to 4000: what is outside of 100 to 255 is clamped; --pixel-range 0 4000 would keep all" in narrow


def test_pixels_are_read_as_the_options_say(folder: Path) -> None:
    for path in paths(folder, "val"):
        Image.fromarray(np.full((8, 8), 1000, dtype=np.uint16)).save(path)
    images, _ = next(opened(folder, GREY, pixel_range=(0, 4000)).evaluation("test"))
    assert round(float(images.mean()) * 255) == 64


def test_the_files_of_a_run_are_known_by_their_names_and_labels(folder: Path, tmp_path: Path) -> None:
    """So a run is not continued with other images in its splits; where the folder lies does not matter."""
    mark = opened(folder).mark
    assert mark is not None
    moved = folder.rename(tmp_path / "moved")
    assert opened(moved).mark == mark
    first = paths(moved, "train")[0]
    first.rename(first.with_name("zzz.png"))
    assert opened(moved).mark != mark
    assert opened(None, GREY, dataset="digits").mark is None


class Reader:
    """As those of timm: opens files by their index."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.files[index].open("rb"), index % 2

    def __len__(self) -> int:
        return len(self.files)

    def filename(self, index: int) -> str:
        return self.files[index].name


def test_what_a_reader_of_timm_opens_is_never_replaced_by_its_neighbour(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's own ImageDataset would give the next image, of another split, for one that cannot be read."""
    from timm.data import ImageDataset

    files = paths(folder, "train")
    for index in (20, 60):
        spoil(files[index])
    made = ImageDataset("", reader=Reader(files))
    monkeypatch.setattr("objectives.data.splits.create_dataset", lambda *a, split, **b: made if split == "train" else
                        ImageDataset("", reader=Reader(paths(folder, "val"))))  # fmt: skip
    data = opened(folder, dataset="hfds/any")
    train, search, test = splits_of(data)
    assert sorted(train + search) == sorted(set(NUMBERS) - {NUMBERS[20], NUMBERS[60]})
    assert sorted(test) == list(range(201, 241))
    named = [name for bad in data.checked.left_out.values() for name in bad]
    assert sorted(named) == [f"image {index} of hfds/any ({files[index].name})" for index in (20, 60)]
    files[21].write_bytes(b"")
    with pytest.raises(DataError, match=rf"image 21 of hfds/any \({files[21].name}\) cannot be read"):
        splits_of(data)


def test_items_of_a_data_set_that_fail_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(Dataset[Any]):
        broken: tuple[int, ...] = (3,)

        def __len__(self) -> int:
            return 100

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            if index in self.broken:
                raise RuntimeError("no such thing")
            return picture(index), index % 2

    monkeypatch.setattr("objectives.data.splits.create_dataset", lambda *arguments, **options: Odd())
    data = opened(tmp_path, dataset="torch/any", holdout="end")
    assert data.checked.left_out == {
        "train": {"image 3 of torch/any": "no such thing"},
        "test": {"image 3 of torch/any": "no such thing"},
    }
    monkeypatch.setattr(Odd, "broken", (3, 4))
    with pytest.raises(DataError, match="image 4 of torch/any cannot be read: no such thing"):
        list(data.calibration())


@pytest.mark.parametrize("inside", ["16.png", "16.tif"])
def test_torchvisions_folders_are_read_the_same_way(tmp_path: Path, inside: str) -> None:
    """Its loader would make white of all values above 255."""
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(10):
                Image.fromarray(np.full((8, 8), 25_700, dtype=np.uint16)).save(tmp_path / split / name / f"{number}{inside}")
    images, _ = next(opened(tmp_path, GREY, dataset="torch/folder", val_split="val").evaluation("test"))
    assert torch.unique(torch.round(images * 255)).tolist() == [100]


def test_a_refused_launch_leaves_no_run_behind(folder: Path, tmp_path: Path, fails: Fails) -> None:
    for path in paths(folder, "train"):
        path.write_bytes(b"")
    sizes = ["img_size=8", "patch_size=4", "embed_dim=16", "depth=1", "num_heads=2"]
    model = ["--model", "vit_tiny_patch16_224", "--num-classes", "2", "--model-kwargs", *sizes]
    images = ["--data-dir", folder, "--output", tmp_path / "run"]
    assert "of the train split cannot be read" in fails("launch", *model, *images)
    assert not (tmp_path / "run").exists()
    for number, path in zip(NUMBERS, paths(folder, "train"), strict=True):
        picture(number).save(path)
    assert "target 'flops=1%'" in fails("launch", *model, *images, "--search-size", "20", "--target", "flops=1%")
    assert not (tmp_path / "run").exists()


def test_what_a_data_set_opens_itself_is_read_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchvision's INaturalist: a loader of its own, and no list of paths."""

    class Listed(Dataset[Any]):
        def __init__(self) -> None:
            self.loader: Callable[[str], Image.Image] = lambda path: Image.open(path).convert("RGB")

        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return self.loader(str(tmp_path / "deep.png")), index % 2

    Image.fromarray(np.full((8, 8), 25_700, dtype=np.uint16)).save(tmp_path / "deep.png")
    monkeypatch.setattr("objectives.data.splits.create_dataset", lambda *arguments, **options: Listed())
    images, _ = next(opened(tmp_path, GREY, dataset="torch/any").evaluation("test"))
    assert torch.unique(torch.round(images * 255)).tolist() == [100]
