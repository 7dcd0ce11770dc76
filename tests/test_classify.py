"""predict: an exported folder classifies image files by itself, and says what is wrong with what it is given."""

import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from local_folders import Folder, changed, write_folder
from local_runs import Fails
from local_vits import MakeVit
from PIL import Image
from safetensors.torch import load_file, save_file
from test_pictures import bomb
from torch import Tensor

import run_search
from objectives.deploy.classify import Answer, Unread, classify
from objectives.deploy.config import Format
from objectives.deploy.formats import write_formats
from objectives.pictures.digits import Digits
from spaces import load_compressed
from spaces.errors import CheckpointError, DataError
from spaces.folder.description import fingerprint_of


@pytest.fixture(scope="module")
def folder(make_vit: MakeVit, images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return write_folder(tmp_path_factory.mktemp("classify") / "model", make_vit, images)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three digits as files of several kinds and modes, and a file that is no image."""
    path, digits = tmp_path_factory.mktemp("pictures"), Digits("test")
    for index, name in enumerate(("b.png", "a.jpg", "c.webp")):
        digits[index][0].resize((40, 30)).save(path / name)
        (path / f"._{name}").write_bytes(b"no image")
    (path / "notes.txt").write_text("no image")
    return path


def expected(folder: Folder, file: Path) -> list[float]:
    """Probabilities by hand: resized, cropped, scaled and normalised as the description says."""
    image = Image.open(file).convert("RGB")
    shorter = math.floor(16 / 0.9)
    scale = shorter / min(image.size)
    sizes = [int(side * scale) for side in image.size]
    image = image.resize((sizes[0], sizes[1]), Image.Resampling.BICUBIC)
    left, top = (round((side - 16) / 2) for side in image.size)
    pixels = torch.tensor(list(image.crop((left, top, left + 16, top + 16)).tobytes())).reshape(16, 16, 3) / 255
    mean, std = torch.tensor([0.3, 0.35, 0.4]), torch.tensor([0.37, 0.36, 0.35])
    logits = folder.logits(((pixels - mean) / std).permute(2, 0, 1)[None])
    shares: list[float] = logits[0].softmax(-1).tolist()
    return shares


def answers(found: Iterable[Answer | Unread]) -> list[Answer]:
    """What must all be read."""
    read = list(found)
    assert not [answer for answer in read if isinstance(answer, Unread)]
    return [answer for answer in read if isinstance(answer, Answer)]


def test_probabilities_follow_from_the_folder_alone(folder: Folder, pictures: Path) -> None:
    found = answers(classify(folder.path, [pictures / "b.png", pictures], top=9))
    assert [answer.image.name for answer in found] == ["b.png", "a.jpg", "b.png", "c.webp"]
    for answer in found:
        shares = expected(folder, answer.image)
        assert [label for label, _, _ in answer.classes] == sorted(range(5), key=lambda label: -shares[label])
        assert [name for _, name, _ in answer.classes] == ["abcde"[label] for label, _, _ in answer.classes]
        assert [share for _, _, share in answer.classes] == pytest.approx(sorted(shares, reverse=True), abs=1e-5)


def test_the_command_prints_a_line_for_every_image(folder: Folder, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_search.main(["predict", str(folder.path), str(pictures), "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    (first, *_) = answers(classify(folder.path, [pictures], top=2))
    (label, name, share), _ = first.classes
    assert lines[0].startswith(f"{pictures / 'a.jpg'}: {name} ({label}) {share:.1%}, ")


def test_classes_without_names_are_told_by_their_numbers(folder: Folder, pictures: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((folder.path / name).read_bytes())
    changed(bare, lambda config: config.update(label_names=None))
    (answer,) = answers(classify(bare, [pictures / "b.png"], top=1))
    assert answer.text.startswith(f"class {answer.classes[0][0]} ")


def test_a_grey_model_reads_colour_as_grey(make_vit: MakeVit, pictures: Path, tmp_path: Path) -> None:
    calibration = torch.randn(32, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    folder = write_folder(tmp_path / "grey", make_vit, calibration, in_chans=1)
    colour = tmp_path / "colour.png"
    Image.new("RGB", (20, 20), (200, 30, 90)).save(colour)
    grey = tmp_path / "grey.png"
    Image.open(colour).convert("L").save(grey)
    one, other = answers(classify(folder.path, [colour, grey]))
    assert one.classes == other.classes


@pytest.mark.parametrize("command", ["predict"])
def test_what_is_no_image_is_told(folder: Folder, pictures: Path, tmp_path: Path, fails: Fails, command: str) -> None:
    empty, cut = tmp_path / "empty", tmp_path / "cut.png"
    empty.mkdir()
    cut.write_bytes((pictures / "b.png").read_bytes()[:60])
    for given, words in (
        (pictures / "notes.txt", "notes.txt cannot be read as an image"),
        (cut, "cut.png cannot be read as an image"),
        (tmp_path / "nowhere.jpg", f"no image at {tmp_path / 'nowhere.jpg'}"),
        (empty, f"no image in {empty}"),
    ):
        assert words in fails(command, folder.path, given)


def test_a_picture_that_cannot_be_read_stops_no_other(
    folder: Folder, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are answered; what is bad, and what of the folder is left out, is told beside them; the status says so."""
    mixed = tmp_path / "mixed"
    (mixed / "more").mkdir(parents=True)
    good = (pictures / "b.png").read_bytes()
    files = {
        "a.png": good[:60],
        "b.png": good,
        "c.jpg": b"",
        "d\x1b[31m.png": bomb(),
        "e.png": good,
        "notes.txt": b"",
        ".x.png": b"",
    }
    for name, content in files.items():
        (mixed / name).write_bytes(content)
    (mixed / "f.png").symlink_to("nowhere")
    assert run_search.main(["predict", str(folder.path), str(mixed), str(tmp_path / "gone.png"), "--top", "1"]) == 2
    out, err = capsys.readouterr()
    assert [line.partition(": ")[0] for line in out.splitlines()] == [str(mixed / "b.png"), str(mixed / "e.png")]
    left_out, *bad = err.splitlines()
    assert left_out == f"left out of {mixed}: 1 file that is no image and 1 folder, whose images are not looked for"
    assert [line.partition(" cannot be read as an image: ")[0] for line in bad] == [
        f"error: {mixed / 'a.png'}", f"error: {mixed / 'c.jpg'}", f"error: {mixed}/d\\x1b[31m.png",
        f"error: no image at {mixed / 'f.png'}", f"error: no image at {tmp_path / 'gone.png'}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "grey"),
    [
        ({"pixel_range": None, "background": "white"}, (64, 255)),
        ({"pixel_range": [0, 32896], "background": "grey"}, (128, 128)),
        ({"pixel_range": None, "background": "ignored"}, (64, 90)),
    ],
)
def test_pictures_are_read_as_the_folder_says(
    folder: Folder, tmp_path: Path, options: dict[str, Any], grey: tuple[int, int]
) -> None:
    """A deep picture, and one of which nothing is opaque: the same answers as of plain ones of these greys."""
    copy, plain = tmp_path / "copy", [tmp_path / "0.png", tmp_path / "1.png"]
    copy.mkdir()
    for name in ("config.json", "model.safetensors"):
        (copy / name).write_bytes((folder.path / name).read_bytes())
    changed(copy, lambda config: config.update(pictures={"mode": "RGB", **options}))
    Image.fromarray(np.full((20, 20), 64 * 257, dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.new("LA", (20, 20), (90, 0)).save(tmp_path / "clear.png")
    for path, value in zip(plain, grey, strict=True):
        Image.new("L", (20, 20), value).save(path)
    found = answers(classify(copy, [tmp_path / "deep.png", tmp_path / "clear.png", *plain]))
    assert [answer.classes for answer in found[:2]] == [answer.classes for answer in found[2:]]


def test_a_picture_of_which_no_pixel_would_be_left_stops_no_other(
    folder: Folder, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(folder.path, tmp_path / "copy"))
    changed(copy, lambda config: config["pretrained_cfg"].update(crop_mode="border"))
    Image.new("RGB", (1, 900)).save(tmp_path / "slim.png")
    assert run_search.main(["predict", str(copy), str(tmp_path / "slim.png"), str(pictures / "b.png")]) == 2
    out, err = capsys.readouterr()
    assert out.startswith(f"{pictures / 'b.png'}: ")
    assert err.startswith(f"error: {tmp_path / 'slim.png'}, 1x900 pixels, cannot be resized for the model (")


def test_what_is_no_exported_folder_is_told(folder: Folder, pictures: Path, tmp_path: Path, fails: Fails) -> None:
    assert "config.json cannot be read" in fails("predict", tmp_path, pictures)
    assert "has no model.pt2" in fails("predict", folder.path, pictures, "--format", "pt2")
    assert "invalid choice: 'tflite'" in fails("predict", folder.path, pictures, "--format", "tflite")
    assert "top must be at least 1, got 0" in fails("predict", folder.path, pictures, "--top", "0")


def test_a_model_of_features_or_of_other_channels_classifies_nothing(
    make_vit: MakeVit, images: Tensor, folder: Folder, pictures: Path, tmp_path: Path
) -> None:
    assert TINY["num_classes"] == 5
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.json", "model.safetensors"):
        (copy / name).write_bytes((folder.path / name).read_bytes())
    changed(copy, lambda config: config.update(num_classes=0, label_names=None))
    with pytest.raises(CheckpointError, match="a model without classes"):
        next(classify(copy, [pictures]))
    wide = torch.cat([images, images[:, :1]], 1)
    spectral = write_folder(tmp_path / "spectral", make_vit, wide, in_chans=4)
    with pytest.raises(DataError, match="takes images of 4 channels"):
        next(classify(spectral.path, [pictures]))


@pytest.mark.parametrize("name", ["safetensors", "onnx", "pt2"])
def test_outputs_that_are_no_numbers_are_an_error(
    make_vit: MakeVit, images: Tensor, pictures: Path, tmp_path: Path, fails: Fails, name: Format
) -> None:
    """Weights that are finite, and whose sum is not."""
    folder = write_folder(tmp_path / "model", make_vit, images).path
    state = load_file(folder / "model.safetensors")
    save_file({**state, "head.weight": torch.full_like(state["head.weight"], 3e38)}, folder / "model.safetensors")
    as_exported(folder)
    write_formats(folder, load_compressed(folder), [name], {})
    as_exported(folder)
    said = fails("predict", folder, pictures / "b.png", "--format", name)
    assert "outputs for" in said and "that are no finite numbers" in said


def test_outputs_of_another_number_of_classes_are_an_error(
    folder: Folder, pictures: Path, tmp_path: Path, fails: Fails
) -> None:
    copy = Path(shutil.copytree(folder.path, tmp_path / "copy"))
    write_formats(copy, load_compressed(copy), ["pt2"], {})
    as_exported(copy)
    changed(copy, lambda config: config.update(num_classes=7, label_names=list("abcdefg")))
    assert "outputs of the shape [5] for an image, not of [7] classes" in fails(
        "predict", copy, pictures / "b.png", "--format", "pt2"
    )


def test_names_cannot_steer_the_terminal(
    folder: Folder, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(folder.path, tmp_path / "copy"))
    names = ["\x1b[2Jred", "two\nlines", "\u202eback", "\ud800", "x" * 1000]
    changed(copy, lambda config: config.update(label_names=names))
    odd = pictures / "b.png"
    (tmp_path / "odd\x1b[31m.png").write_bytes(odd.read_bytes())
    assert run_search.main(["predict", str(copy), str(tmp_path / "odd\x1b[31m.png")]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.isprintable()
    assert all(
        text in line for text in (r"odd\x1b[31m.png: ", r"\x1b[2Jred (0) ", r"two\nlines (1) ", r"\u202eback", r"\ud800")
    )
    assert f"{'x' * 197}... (4) " in line


def as_exported(folder: Path) -> None:
    """Have config.json tell the hashes of the files that are there now."""
    changed(folder, lambda config: config.update(files={path.name: fingerprint_of(path) for path in folder.glob("model.*")}))
