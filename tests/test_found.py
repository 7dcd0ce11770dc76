"""What is told of the data and the dense model before anything is paid for, and what is refused."""

import json
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from local_images import GREY, fill, opened, picture
from local_launches import Silent, config_of
from local_runs import MODEL, SHORT, Fails
from rich.console import Console

from objectives.data.loaders import Data
from objectives.data.odd_folders import odd_folders
from objectives.error import Evaluation
from search import export, launch
from search.fidelity.judge import CLASS_MAP, judge, tell_found
from search.terminal.display import Display
from search.terminal.inspect_model import inspect_profile
from spaces.errors import DataError

SHAPES = tuple(f"shape_{number}" for number in range(1, 13))


def told(data: Data) -> tuple[list[str], list[str]]:
    """Lines and warnings of a data set, without the folder that it lies in."""
    said, warned = list[str](), list[str]()
    tell_found(data, said.append, warned.append)
    where = str(data.config.data_dir)
    return [line.replace(where, "DATA") for line in said], [line.replace(where, "DATA") for line in warned]


def test_every_split_is_told_with_what_is_not_read(tmp_path: Path) -> None:
    fill(tmp_path, {f"{split}/{name}": range(60) for split in ("train", "test", "val") for name in ("cat", "dog")})
    picture(1).save(tmp_path / "cover.png")
    fill(tmp_path, {"docs": [1], "train/__MACOSX": [1], "unlabelled": [1, 2]})
    for name in ("train/cat/a.txt", "train/dog/b.txt", "train/.DS_Store", "test/cat/c.csv"):
        (tmp_path / name).touch()
    said, warned = told(opened(tmp_path, search_size=100))
    assert said == [
        "train: 20 images of 2 classes in DATA/train",
        "search: 100 images of 2 classes, held out of DATA/train",
        "test: 120 images of 2 classes in DATA/test",
        "not read: docs, unlabelled, val, train/__MACOSX, 1 image beside the splits (--search-split can name val)",
        "left out: 4 files that are no images (.txt 2, .csv 1, hidden 1)",
    ]
    assert warned == []


def test_class_folders_alone_are_told_as_what_they_are(tmp_path: Path) -> None:
    fill(tmp_path, {"cat": range(150), "dog": range(150), ".git": [1]})
    assert told(opened(tmp_path, search_size=100))[0] == [
        "train: 100 images of 2 classes in DATA",
        "search: 100 images of 2 classes, held out of DATA",
        "test: 100 images of 2 classes, held out of DATA",
        f"not read: {tmp_path.name}/.git",
    ]


def test_numbers_are_of_the_images_that_are_read(tmp_path: Path) -> None:
    """A file that is no image in truth is in none of them."""
    fill(tmp_path, {f"{split}/{name}": range(30) for split in ("train", "val") for name in ("cat", "dog")})
    (tmp_path / "val" / "dog" / "007.png").write_bytes(b"no image")
    data = opened(tmp_path)
    images = [sum(len(labels) for _, labels in data.evaluation(split)) for split in ("search", "test")]
    assert images == [6, 59]
    assert [data.found.splits[split].images for split in ("train", "search", "test")] == [54, *images]


def test_built_in_data_need_few_words() -> None:
    said, warned = told(opened(None, GREY, dataset="digits"))
    assert said == ["train: 1,140 images in digits", "search: 297 images in digits", "test: 360 images in digits"]
    assert warned == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"search_size": 19},
            r"the search split has 19 images of 2 classes.* at least 20 .*--search-size 20.*--least-images 19",
        ),
        ({"search_size": 1}, r"the search split has 1 image of 1 class, held out .*--least-images 1$"),
        ({"search_size": 30, "least_images": 31}, "the search split has 30 images.* at least 31 images are wanted"),
        ({"val_split": "small"}, r"the test split has 4 images of 2 classes in .*small.* name another with --val-split"),
        ({"search_split": "small"}, r"the search split has 4 images .* name another with --search-split"),
    ],
)
def test_splits_of_few_images_are_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    fill(
        tmp_path,
        {f"{split}/{name}": range(size) for split, size in (("train", 60), ("val", 15), ("small", 2)) for name in "ab"},
    )
    data = opened(tmp_path, **{"search_size": 20, **options})
    with pytest.raises(DataError, match=words):
        told(data)
    told(opened(tmp_path, **{"search_size": 20, **options, "least_images": 1}))


def test_a_streamed_split_is_counted_when_it_was_read(tmp_path: Path) -> None:
    data = opened(None, GREY, dataset="digits")
    data.found.splits["search"] = replace(data.found.splits["search"], images=None)
    assert told(data)[0][1] == "search: a stream of images in digits"
    with pytest.raises(DataError, match="the search split has 12 images in digits, at least 20"):
        list(judge(dense_of([(0, 0, 6), (1, 1, 6)]), data, tmp_path))
    data.found.splits["search"] = replace(data.found.splits["search"], images=None)
    (text,) = judge(dense_of([(0, 0, 11), (1, 1, 11)]), data, tmp_path)
    assert text == "the search split has 22 images: an error of 10 % is known to ±6.4 points"


@pytest.mark.parametrize(("size", "points"), [(20, "6.7"), (42, "4.6"), (99, "3.0")])
def test_small_splits_are_told_with_their_standard_error(tmp_path: Path, size: int, points: str) -> None:
    """Of a share of 10 %: 30 points over the root of their number."""
    fill(tmp_path, {"train/a": range(100), "train/b": range(100), "val/a": range(50), "val/b": range(50)})
    _, warned = told(opened(tmp_path, search_size=size))
    assert warned == [f"the search split has {size} images: an error of 10 % is known to ±{points} points"]


@pytest.mark.parametrize(
    ("names", "label", "here", "there"),
    [
        (SHAPES, 1, "shape_2", "shape_10"),
        (("Dog", "cat", "Emu"), 0, "cat", "Dog"),
        (("v1.10", "v1.9", "v1.8"), 0, "v1.8", "v1.10"),
        (("b", "a", "_c"), None, "", ""),
    ],
)
def test_an_order_that_torchvision_does_not_have_is_told(
    tmp_path: Path, names: Sequence[str], label: int | None, here: str, there: str
) -> None:
    fill(tmp_path, {name: range(2) for name in names})
    found = [text for text in opened(tmp_path, search_size=1).found.warnings() if "torchvision" in text]
    if label is None:
        assert found == []
    else:
        (text,) = found
        assert f"label {label} is {here} here and {there} there" in text
        assert "--class-order torchvision" in text and "--class-map" in text
    quiet = opened(tmp_path, search_size=1, class_order="torchvision").found
    assert not any("torchvision" in text for text in quiet.warnings())
    assert quiet.class_order == "torchvision"


def test_what_a_class_map_and_the_folders_do_not_share_is_told(tmp_path: Path) -> None:
    fill(tmp_path / "set", {"cat": range(5), "dog": range(6), "eel": range(7)})
    (tmp_path / "map.txt").write_text("dog\nfox\ncat\n")
    data = opened(tmp_path / "set", search_size=1, class_map=str(tmp_path / "map.txt"))
    warned = [text.replace(str(tmp_path), "") for text in data.found.warnings() if "±" not in text]
    assert warned == [
        "/set: 7 images of eel are left out, which /map.txt does not name",
        "/set has no images of fox, which /map.txt names",
    ]
    assert (data.num_classes, data.found.class_order) == (3, "class map map.txt")
    assert sum(data.size(split) or 0 for split in ("train", "search", "test")) == 11


@pytest.mark.parametrize(
    ("tree", "wanted", "words"),
    [
        ({"cat": 50, "dog": 40, "eel": 3}, 2, "far fewer images than the others (eel 3; median 40)"),
        ({"cat": 50, "dog": 50, "test": 50}, 2, "test has the name of no class"),
        ({"cat": 50, "dog": 50, "_old": 50}, 2, "_old has the name of no class"),
        ({"cat": 50, "dog": 50, "eel": 30}, 2, "eel has the fewest images (30; median 50)"),
        ({"cat": 50, "dog": 50, "eel": 0}, 3, "eel has no images, and is no class"),
        ({"cat": 50, "dog": 50, ".eel": 1, "__MACOSX": 1}, 3, ".eel, __MACOSX are hidden, and not read"),
        ({"cat": 50, "dog": 50}, 1, None),
        ({"cat": 50, "dog": 50}, None, None),
    ],
)
def test_folders_behind_a_wrong_number_of_classes_are_named(
    tmp_path: Path, tree: dict[str, int], wanted: int | None, words: str | None
) -> None:
    fill(tmp_path, {name: range(count) for name, count in tree.items()})
    found = odd_folders(opened(tmp_path).found, wanted)
    assert found is None if words is None else words in (found or "")


def test_the_odd_folder_is_in_the_error(fails: Fails, checkpoint: Path, tmp_path: Path) -> None:
    fill(tmp_path / "set", {**{str(number): range(8) for number in range(10)}, "__MACOSX": [1], "New folder": [1]})
    line = fails(
        "launch", *MODEL, "--checkpoint", checkpoint, "--data-dir", tmp_path / "set", *SHORT, "--output", tmp_path / "run"
    )
    assert "the images have 11 classes, the model has 10" in line
    assert "New folder has the name of no class" in line
    assert not (tmp_path / "run").exists()


# Of the dense model


def dense_of(pairs: Sequence[tuple[int, int, int]]) -> Evaluation:
    images = sum(count for _, _, count in pairs)
    right = sum(count for label, answer, count in pairs if label == answer)
    return Evaluation(error=1 - right / images, kl=0.0, count=images, confusion=tuple(pairs))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    fill(root, {name: range(2) for name in SHAPES})
    return root


def trained_in(names: Sequence[str]) -> Evaluation:
    """Of a model that was trained with labels in this order, on the shapes in timm's."""
    return dense_of([(label, names.index(name), 20) for label, name in enumerate(SHAPES)])


def test_a_model_of_torchvisions_order_is_told_the_way_out(shapes: Path, tmp_path: Path) -> None:
    (text,) = judge(trained_in(sorted(SHAPES)), opened(shapes), tmp_path)
    assert "its error on the search split is 91.7% in timm's order of class folders, and 0.0% in torchvision's" in text
    assert "launch with --class-order torchvision" in text
    assert not list(judge(trained_in(SHAPES), opened(shapes), tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_model_of_timms_order_is_told_where_torchvisions_was_asked_for(shapes: Path, tmp_path: Path) -> None:
    names = sorted(SHAPES)
    dense = dense_of([(label, SHAPES.index(name), 20) for label, name in enumerate(names)])
    (text,) = judge(dense, opened(shapes, class_order="torchvision"), tmp_path)
    assert "in torchvision's order of class folders, and 0.0% in timm's: stop it, and launch with --class-order timm" in text


def test_the_names_in_the_models_folder_tell_its_order_with_no_answer(shapes: Path, tmp_path: Path) -> None:
    nothing = Evaluation(error=0.5, kl=0.0, count=100)
    (text,) = judge(nothing, opened(shapes), tmp_path, sorted(SHAPES))
    assert "output 1 is shape_10 there, label 1 is shape_2 here" in text
    assert text.endswith("its order is torchvision's: stop it, and launch with --class-order torchvision")
    mixed = [*reversed(SHAPES[:6]), *SHAPES[6:]]
    (text,) = judge(nothing, opened(shapes), tmp_path, mixed)
    assert text.endswith(f"launch with --class-map {tmp_path / CLASS_MAP}")
    assert (tmp_path / CLASS_MAP).read_text().split() == mixed
    for same in (SHAPES, (), [f"other {name}" for name in SHAPES]):
        assert not list(judge(nothing, opened(shapes), tmp_path, same))


def test_a_class_map_that_is_not_the_models_is_told(shapes: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.txt"
    wrong.write_text("\n".join(reversed(SHAPES)))
    dense = dense_of([(label, SHAPES.index(name), 20) for label, name in enumerate(reversed(SHAPES))])
    (text,) = judge(dense, opened(shapes, class_map=str(wrong)), tmp_path)
    assert "in class map wrong.txt, and 0.0% in timm's" in text
    assert "--class-order timm and no --class-map" in text


def test_a_class_map_of_some_folders_gets_another_one_as_the_way_out(tmp_path: Path) -> None:
    """--class-order would give labels to all of them."""
    fill(tmp_path / "set", {name: range(2) for name in SHAPES})
    names = list(SHAPES[1:])
    (tmp_path / "wrong.txt").write_text("\n".join(reversed(names)))
    dense = dense_of([(label, names.index(name), 20) for label, name in enumerate(reversed(names))])
    (text,) = judge(dense, opened(tmp_path / "set", class_map=str(tmp_path / "wrong.txt")), tmp_path)
    assert "0.0% in timm's order of their names: shape_2, shape_3" in text
    assert (tmp_path / CLASS_MAP).read_text().split() == names


def test_a_data_set_with_names_of_its_own_has_no_such_option(tmp_path: Path) -> None:
    data = opened(None, GREY, dataset="digits")
    data.class_names = ["ten", "nine", "8", "7", "6", "5", "4", "3", "2", "1"]
    expected = sorted(data.class_names)
    dense = dense_of([(label, expected.index(name), 20) for label, name in enumerate(data.class_names)])
    (text,) = judge(dense, data, tmp_path)
    assert text.endswith("in the data set's, and 0.0% in torchvision's order of their names: 1, 2, 3, 4, 5, 6, 7, 8, nine, ten")
    assert not list(tmp_path.iterdir())


def test_an_order_without_a_name_is_written_as_a_class_map(shapes: Path, tmp_path: Path) -> None:
    """With the map the labels are those that the model was trained with."""
    order = [*reversed(SHAPES[:6]), *SHAPES[6:]]
    (text,) = judge(trained_in(order), opened(shapes), tmp_path)
    assert "neither timm's nor torchvision's: shape_6, shape_5, shape_4" in text
    assert f"--class-map {tmp_path / CLASS_MAP}" in text
    assert opened(shapes, class_map=str(tmp_path / CLASS_MAP)).class_names == order


def test_names_that_a_class_map_cannot_hold_are_told(tmp_path: Path) -> None:
    fill(tmp_path / "set", {name: range(2) for name in ("a ", "b", "c", "d")})
    (text,) = judge(dense_of([(label, 3 - label, 20) for label in range(4)]), opened(tmp_path / "set"), tmp_path)
    assert "d, c, b, a : a class map cannot name 'a ': rename such folders" in text
    assert not (tmp_path / CLASS_MAP).exists()


def test_a_model_near_chance_is_told_what_may_be_why(shapes: Path, tmp_path: Path) -> None:
    (text,) = judge(dense_of([(label, 3, 20) for label in range(12)]), opened(shapes), tmp_path)
    assert "its error on the search split is 91.7%, that of always answering the most common class 91.7% (±1.8%)" in text
    assert all(word in text for word in ("--class-order", "--class-map", "--mean", "--std"))


def test_two_classes_are_not_near_chance_for_making_errors(tmp_path: Path) -> None:
    fill(tmp_path, {"a": range(10), "b": range(10)})
    data = opened(tmp_path)
    assert not list(judge(dense_of([(0, 0, 90), (0, 1, 10), (1, 1, 95), (1, 0, 5)]), data, tmp_path))
    (text,) = judge(dense_of([(0, 0, 52), (0, 1, 48), (1, 1, 52), (1, 0, 48)]), data, tmp_path)
    assert "near chance" in text


@pytest.mark.slow
def test_what_was_found_is_told_before_factors_are_computed(tmp_path: Path) -> None:
    """The model is untrained."""
    reporter = Silent()
    launch(config_of(tmp_path, trials=1), reporter)
    assert reporter.said[0] == "train: 1,140 images in digits"
    (chance,) = [text for text in reporter.notices if "near chance" in text]
    assert reporter.told.index("dense model") < reporter.told.index(chance) < reporter.told.index("factors")


@pytest.mark.slow
def test_an_export_says_which_order_its_names_are_in(tmp_path: Path) -> None:
    """The figures are of the files that are there."""
    fill(tmp_path / "set", {f"{split}/{name}": range(4) for split in ("train", "val") for name in SHAPES[:10]})
    given = {"dataset": "", "data_dir": str(tmp_path / "set"), "class_order": "torchvision", "search_size": 20, "workers": 0}
    reporter = Silent()
    run = launch(config_of(tmp_path, **given, trials=2, steps=1), reporter)
    assert f"test: 40 images of 10 classes in {tmp_path / 'set' / 'val'}" in reporter.said
    folder = export(run, trial=1, notice=reporter.notices.append)
    config, report = (json.loads((folder / name).read_text()) for name in ("config.json", "report.json"))
    assert config["label_names"] == sorted(SHAPES[:10])
    assert (config["class_order"], report["class_order"], report["test_images"]) == ("torchvision", "torchvision", 40)
    assert reporter.notices.count("the test split has 40 images: an error of 10 % is known to ±4.7 points") == 2


@pytest.mark.slow
def test_inspect_tells_what_it_read(tmp_path: Path) -> None:
    watcher = Silent()
    list(inspect_profile(config_of(tmp_path, profile_images=32, calibration_size=32), watcher))
    assert watcher.said[0] == "train: 1,140 images in digits"


def test_lines_and_warnings_go_to_the_terminal_as_they_are() -> None:
    text = StringIO()
    with Display(Console(file=text, width=40)) as display:
        display.say("train: [red] 1,140 images of 10 classes in a/folder")
        display.notice("left [b] out")
    assert text.getvalue().splitlines() == ["train: [red] 1,140 images of 10 classes in a/folder", "left [b] out"]
