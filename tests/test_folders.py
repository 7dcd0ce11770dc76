"""Class folders: what is a class, an image or neither; which labels they get; and what is refused, with what to do."""

import os
import random
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from local_images import fill, opened, picture
from timm.data.readers.reader_image_folder import find_images_and_targets
from torchvision.datasets import ImageFolder as TorchvisionFolder

from objectives.data.config import DataConfig
from objectives.data.folders import ImageFolder, listed, read_class_folders
from objectives.data.split_folders import find_split_folders
from objectives.data.splits import open_splits
from spaces.errors import DataError

AWKWARD = ("shape_10", "shape_9", "Dog", "cat", "01x", "1a", "z z", "é", "ß", "a.b", "a-b", "A_1", "10", "9", "a10b2", "a9b11")


def bases_of(root: Path, **options: str) -> dict[str, ImageFolder]:
    bases, _ = open_splits(DataConfig(data_dir=str(root), **options), "RGB")  # type: ignore[arg-type]
    return {name: base for name, base in bases.items() if isinstance(base, ImageFolder)}


def test_labels_and_files_are_those_of_timms_reader(tmp_path: Path) -> None:
    fill(tmp_path, {name: range(5, 12) for name in random.Random(0).sample(AWKWARD, len(AWKWARD))})
    base = bases_of(tmp_path)["train"]
    samples, labels = find_images_and_targets(str(tmp_path))
    assert base.samples == samples
    assert base.class_to_idx == labels


def test_labels_are_those_of_torchvision_where_they_are_asked_for(tmp_path: Path) -> None:
    fill(tmp_path, {name: range(2) for name in random.Random(0).sample(AWKWARD, len(AWKWARD))})
    base, other = bases_of(tmp_path, class_order="torchvision")["train"], TorchvisionFolder(tmp_path)
    assert base.class_to_idx == other.class_to_idx
    assert sorted(base.samples) == sorted(other.samples)
    assert [path for path, _ in base.samples] == [path for path, _ in bases_of(tmp_path)["train"].samples], "the same files"


def test_the_order_of_files_does_not_depend_on_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {name: range(3) for name in ("b", "a", "A10", "a9")})
    expected, scandir = bases_of(tmp_path)["train"].samples, os.scandir

    class Turned:
        """As another file system would list it."""

        def __init__(self, path: object) -> None:
            with scandir(path) as entries:  # type: ignore[call-overload]
                self.entries = sorted(entries, key=lambda entry: hash(entry.name[::-1]))

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr("objectives.data.folders.os.scandir", Turned)
    assert bases_of(tmp_path)["train"].samples == expected


def test_folders_that_timm_cannot_tell_apart_keep_their_labels(tmp_path: Path) -> None:
    """Its order of them changes from process to process."""
    fill(tmp_path, {name: [1] for name in ("dog", "1", "Dog", "01", "²")})
    assert list(bases_of(tmp_path)["train"].class_to_idx.items()) == [("01", 0), ("1", 1), ("Dog", 2), ("dog", 3), ("²", 4)]


def test_what_systems_leave_is_no_class_and_no_image(tmp_path: Path) -> None:
    fill(tmp_path, {name: [1] for name in ("cat", "dog", "__MACOSX", ".ipynb_checkpoints", "cat/.ipynb_checkpoints")})
    (tmp_path / "empty").mkdir()
    for name in ("cat/._001.png", "cat/Thumbs.db", "dog/notes.TXT", "dog/labels.txt", "dog/README", "index.html"):
        (tmp_path / name).touch()
    found = read_class_folders(tmp_path)
    assert dict(found.images) == {"cat": ["001.png"], "dog": ["001.png"]}
    assert (found.empty, found.count) == (("empty",), 2)
    assert found.left_out == {"hidden": 2, ".txt": 2, "without an ending": 1, ".html": 1}
    assert set(found.hidden) == {"__MACOSX", ".ipynb_checkpoints", "cat/.ipynb_checkpoints"}


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("train/cat/2021", "train/cat/2022", "train/dog/2021"), r"train must .* cat, dog hold folders in turn \(cat/2021\)"),
        (("train/cat", "train/dog/2021"), r"dog holds folders in turn \(dog/2021\): move the images up"),
        (("train/cat", "train/dog", "train/dog/a/b/c"), r"dog holds folders in turn \(dog/a\)"),
        (("train/n1/images", "train/n2/images"), r"n1, n2 hold folders in turn \(n1/images\)"),
        (("train/images/cat", "train/images/dog"), r"images holds folders in turn .*--train-split"),
        (("train/cat", "train/dog", "val/cat/1", "val/dog"), r"val must .* cat holds folders in turn"),
        (("train/cat", "train/dog", "search/cat/1", "search/dog"), r"search must .* cat holds folders in turn"),
        (("cat/2021", "dog/2021"), r"cat, dog hold folders in turn"),
        (("set/train/cat", "set/train/dog"), r"set holds folders in turn \(set/train\)"),
        (("train/cat", "train/dog", "train"), r"train has 1 image beside its class folders \(001.png\)"),
        (("cat", "dog", ""), r"has 1 image beside its class folders"),
        (("train/cat", "train/dog", "val/cat", "val/dog", "val"), r"val has 1 image beside"),
        (("train",), "has 1 images but no class folders"),
        (("val/cat", "val/dog", "test/cat"), r"no folder to train on: it has test, val: name one with --train-split"),
        (("val", "test"), r"no folder to train on"),
    ],
)
def test_what_may_be_no_class_is_refused(tmp_path: Path, folders: Iterable[str], words: str) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        picture(1).save(tmp_path / folder / "001.png")
    with pytest.raises(DataError, match=words):
        bases_of(tmp_path, **({"search_split": "search"} if (tmp_path / "search").exists() else {}))


def test_empty_folders_in_class_folders_are_no_nesting(tmp_path: Path) -> None:
    fill(tmp_path, {"cat": [1, 2], "dog": [3, 4], "dog/old/older": []})
    assert bases_of(tmp_path)["train"].class_to_idx == {"cat": 0, "dog": 1}


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    fill(tmp_path / "real", {"cat": [1, 2], "dog": [3]})
    (tmp_path / "set").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "real" / name)
    (tmp_path / "real" / "cat" / "again").symlink_to(tmp_path / "real" / "cat")
    (tmp_path / "real" / "dog" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "real" / "dog" / "gone.png").symlink_to(tmp_path / "nowhere")
    base = bases_of(tmp_path / "set")["train"]
    assert [Path(path).name for path, _ in base.samples] == ["001.png", "002.png", "003.png", "gone.png"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file cannot be listed: Not a directory"):
        listed(tmp_path / "file")


def test_forms_of_one_name_are_one_class(tmp_path: Path) -> None:
    """What a Mac unpacks is written otherwise than what Linux does."""
    one, other = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    fill(tmp_path, {f"train/{one}": [1], "train/f": [2], f"val/{other}": [3], "val/f": [4]})
    found = bases_of(tmp_path)
    assert found["test"].class_to_idx == found["train"].class_to_idx == {"f": 0, one: 1}
    assert [label for _, label in found["test"].samples] == [1, 0], "files are in the order of their own names"
    fill(tmp_path / "train", {other: [5]})
    with pytest.raises(DataError, match="has two folders"):
        bases_of(tmp_path)


def test_names_that_are_no_text_do_not_stop_anything(tmp_path: Path) -> None:
    fill(tmp_path, {os.fsdecode(b"caf\xe9"): range(20), "a\nb": range(20), " c ": range(20)})
    data = opened(tmp_path)
    assert data.class_names == [" c ", "a\nb", "caf\\xe9"]
    assert all(line.isprintable() for line in (*data.found.lines(), *data.found.warnings()))
    assert data.size("train") == 48


def write(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text, encoding="utf-8")


def test_a_class_map_gives_the_labels(tmp_path: Path) -> None:
    fill(tmp_path / "set", {"cat": [1, 2], "dog": [3, 4], "eel": [5]})
    write("\ufeffdog\ncat\n\n")(tmp_path / "map.txt")
    for order in ("timm", "torchvision"):
        base = bases_of(tmp_path / "set", class_map=str(tmp_path / "map.txt"), class_order=order)["train"]
        assert base.class_to_idx == {"dog": 0, "cat": 1}
        assert [(Path(path).parent.name, label) for path, label in base.samples] == [("cat", 1)] * 2 + [("dog", 0)] * 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (write("eel\nfox\n"), "names none of the folders"),
        (write(""), "must give labels from 0"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "cannot be read"),
        (lambda path: None, "cannot be read: Cannot locate"),
    ],
    ids=["other names", "empty", "no text", "not there"],
)
def test_a_class_map_of_no_use_is_named(tmp_path: Path, content: Callable[[Path], object], words: str) -> None:
    fill(tmp_path / "set", {"cat": [1], "dog": [2]})
    content(tmp_path / "map.txt")
    with pytest.raises(DataError, match=f"map.txt.*{words}"):
        bases_of(tmp_path / "set", class_map=str(tmp_path / "map.txt"))


@pytest.mark.parametrize(
    ("train", "test"),
    [("Train", "VAL"), ("TRAINING", "Validation"), ("training", "eval"), ("train", "Test"), ("train", "evaluation")],
)
def test_splits_are_found_under_their_usual_names(tmp_path: Path, train: str, test: str) -> None:
    fill(tmp_path, {f"{train}/cat": [1], f"{test}/cat": [2], "other/cat": [3]})
    found = find_split_folders(tmp_path, "train", None, "validation")
    assert (found.train, found.search, found.test) == (tmp_path / train, None, tmp_path / test)


def test_the_exact_name_of_a_split_comes_first(tmp_path: Path) -> None:
    fill(tmp_path, {"Train/cat": [1], "train/cat": [2], "Val/cat": [3], "val/cat": [4]})
    found = find_split_folders(tmp_path, "train", "VAL", "val")
    assert (found.train, found.search, found.test) == (tmp_path / "train", tmp_path / "Val", tmp_path / "val")


def test_a_split_may_lie_deeper_or_elsewhere(tmp_path: Path) -> None:
    fill(tmp_path, {f"set/images/train/{name}": [1] for name in ("cat", "dog")} | {"other/cat": [2], "other/dog": [3]})
    found = bases_of(tmp_path / "set", train_split="images/train", val_split="../other")
    assert [len(base) for base in found.values()] == [2, 2, 2]  # the search split is held out of train
    assert found["test"].root == tmp_path / "other"


def test_one_folder_by_two_names_is_no_second_split(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"cat": [1], "dog": [2]})
    (tmp_path / "val").symlink_to(tmp_path / "train")
    with pytest.raises(DataError, match="train and test splits are the same images"):
        bases_of(tmp_path)


def test_splits_of_other_classes_name_the_folders(tmp_path: Path) -> None:
    fill(tmp_path, {"train/cat": [1], "train/dog": [2], "val/cat": [3], "val/dog": [], "val/eel": [4]})
    with pytest.raises(DataError, match=r"dog in train alone \(dog in val without images\); eel in val alone"):
        bases_of(tmp_path)


def test_a_link_from_one_split_into_another_is_refused(tmp_path: Path) -> None:
    """Else candidates would be reported on images that they were trained on."""
    fill(tmp_path / "train", {"a": range(3), "b": range(3)})
    fill(tmp_path / "val", {"a": range(3, 6)})
    (tmp_path / "val" / "b").symlink_to(tmp_path / "train" / "b")
    with pytest.raises(DataError, match=r"the train and test splits share 3 images, by links: .*train/b/\S+ is .*val/b/"):
        bases_of(tmp_path)
    (tmp_path / "val" / "b").unlink()
    fill(tmp_path / "val", {"b": range(6, 9)})
    bases_of(tmp_path)
    (tmp_path / "val" / "a" / "extra.png").symlink_to(sorted((tmp_path / "train" / "b").iterdir())[0])
    with pytest.raises(DataError, match=r"share 1 image, by links: .*train/b/\S+ is .*val/a/extra\.png: take them out"):
        bases_of(tmp_path)


def test_a_link_to_itself_does_not_keep_a_folder_from_being_listed(tmp_path: Path) -> None:
    fill(tmp_path, {"a": range(2), "b": range(2)})
    (tmp_path / "self").symlink_to("self")
    assert listed(tmp_path).folders == ["a", "b"]


def test_a_class_map_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    """timm would move the class to its last line."""
    fill(tmp_path / "images", {"a": range(2), "b": range(2)})
    (tmp_path / "map.txt").write_text("a\nb\na\n")
    with pytest.raises(DataError, match=r"map\.txt gives no name to label 0: a name stands there twice, or a line is empty"):
        bases_of(tmp_path / "images", class_map=str(tmp_path / "map.txt"))
    (tmp_path / "map.csv").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"map\.csv cannot be read: .* \(it must be a \.txt file"):
        bases_of(tmp_path / "images", class_map=str(tmp_path / "map.csv"))


def test_archives_in_place_of_class_folders_are_told(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"it has no folders and other files \(\.tar 2\)"):
        bases_of(tmp_path)
