"""One picture: which files are pictures, what becomes of its pixels, and what is said where it cannot be read."""

import io
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from objectives.pictures.reading import ENDINGS, Reading, is_picture, quiet, reading_for
from spaces.errors import ConfigError, DataError, printable

RGB, GREY = Reading(mode="RGB"), Reading(mode="L")
PLAIN = ("png", "jpg", "webp", "tif", "bmp", "gif", "jp2", "ppm", "tga", "ico")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(side: int = 60_000) -> bytes:
    """A PNG of a few bytes that says that it has side x side pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


def with_text(png: bytes, last: bool) -> bytes:
    """A PNG with a compressed text of 2 MB, before its pixels or after them."""
    begin = len(png) - 12 if last else png.index(b"IDAT") - 4
    return png[:begin] + chunk(b"zTXt", b"key\0\0" + zlib.compress(b"a" * 2_000_000)) + png[begin:]


def colours(size: tuple[int, int] = (24, 20)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def saved(image: Image.Image, ending: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, Image.registered_extensions()[f".{ending}"], **options)
    return file.getvalue()


def values_of(image: Image.Image) -> list[int]:
    return list(image.tobytes())


def test_what_pillow_reads_is_a_picture_and_what_systems_leave_is_none() -> None:
    names = [f"A.{ending}" for ending in PLAIN] + ["b.JPEG", "c.x.TIFF", "d.pgm", "e.avif", "f.mpo"]
    assert all(map(is_picture, names))
    others = [
        "._a.png",
        ".DS_Store",
        ".png",
        "Thumbs.db",
        "a.txt",
        "png",
        "a.pdf",
        "a.ps",
        "a.eps",
        "a.mpg",
        "a.h5",
        "a.wmf",
        "a.png.part",
    ]
    assert not any(map(is_picture, others))
    assert {".png", ".jpg", ".jpeg"} < ENDINGS


@pytest.mark.parametrize("ending", PLAIN)
def test_every_format_is_read_as_pillow_does(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(saved(colours(), ending))
    for reading in (RGB, GREY):
        assert values_of(reading.read(path)) == values_of(Image.open(path).convert(reading.mode))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV"])
def test_opaque_modes_are_converted(tmp_path: Path, mode: str) -> None:
    image = colours().convert(mode)
    via = image.convert("RGB")  # Pillow has no way from LAB to grey
    assert values_of(RGB.convert(image)) == values_of(via)
    assert values_of(GREY.convert(image)) == values_of((via if mode == "LAB" else image).convert("L"))


@pytest.mark.parametrize(
    ("dtype", "values", "greys"),
    [
        ("<u2", [0, 257, 32768, 65535], [0, 1, 128, 255]),
        (">u2", [0, 257, 32768, 65535], [0, 1, 128, 255]),
        ("<i4", [-5, 257, 32768, 70000], [0, 1, 128, 255]),
        ("<f4", [-1.0, 0.25, 1.0, 7.0], [0, 64, 255, 255]),
        ("<f4", [np.nan, np.inf, -np.inf, 0.5], [0, 255, 0, 128]),
    ],
)
def test_more_than_8_bits_are_scaled_by_the_range_of_their_type(
    tmp_path: Path, dtype: str, values: list[float], greys: list[int]
) -> None:
    """Pillow's convert makes white of everything above 255."""
    path = tmp_path / "deep.tif"
    Image.fromarray(np.array([values], dtype=dtype)).save(path)
    assert values_of(GREY.read(path)) == greys
    assert values_of(RGB.read(path)) == [grey for grey in greys for _ in range(3)]


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_16_bits_are_the_same_in_every_format(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"deep.{ending}"
    Image.fromarray(np.array([[0, 5140, 65535]], dtype=np.uint16)).save(path)
    assert values_of(GREY.read(path)) == [0, 20, 255]


def test_a_range_may_be_given(tmp_path: Path) -> None:
    path = tmp_path / "ct.tif"
    Image.fromarray(np.array([[-2000, -1000, 0, 1000, 3000]], dtype=np.int32)).save(path)
    assert values_of(Reading(mode="L", pixel_range=(-1000, 1000)).read(path)) == [0, 0, 128, 255, 255]


HALF = Image.fromarray(np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 51]]], dtype=np.uint8))


@pytest.mark.parametrize(
    ("background", "pixels"),
    [
        ("white", [[200, 100, 50], [255, 255, 255], [244, 224, 214]]),  # a fifth of the colour, four fifths of 255
        ("black", [[200, 100, 50], [0, 0, 0], [40, 20, 10]]),
        ("grey", [[200, 100, 50], [128, 128, 128], [142, 122, 112]]),
        ("ignored", [[200, 100, 50]] * 3),
    ],
)
def test_transparent_pictures_are_laid_over_a_background(tmp_path: Path, background: Any, pixels: list[list[int]]) -> None:
    reading = Reading(mode="RGB", background=background)
    for ending in ("png", "tif"):
        (tmp_path / f"a.{ending}").write_bytes(saved(HALF, ending))
        found = np.asarray(reading.read(tmp_path / f"a.{ending}")).astype(int)
        assert np.abs(found[0] - pixels).max() <= 1
    assert np.abs(np.asarray(reading.convert(HALF.convert("RGBa"))).astype(int)[0, 0] - pixels[0]).max() <= 1


def test_every_kind_of_transparency_is_seen(tmp_path: Path) -> None:
    """One value or colour, or a share per entry of a palette: the second pixel shows the background."""
    two = Image.fromarray(np.array([[10, 90]], dtype=np.uint8))
    palette = two.convert("RGB").quantize(2)
    clear = np.asarray(palette)[0, 1]
    shares = bytes(0 if entry == clear else 255 for entry in range(2))
    files = {
        "L.png": saved(two, "png", transparency=90),
        "RGB.png": saved(two.convert("RGB"), "png", transparency=(90, 90, 90)),
        "P.png": saved(palette, "png", transparency=int(clear)),
        "PA.png": saved(palette, "png", transparency=shares),
        "P.gif": saved(palette, "gif", transparency=int(clear)),
        "LA.png": saved(Image.merge("LA", [two, Image.fromarray(np.array([[255, 0]], dtype=np.uint8))]), "png"),
        "16.png": saved(Image.fromarray(np.array([[2570, 9000]], dtype=np.uint16)), "png", transparency=9000),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert values_of(Reading(mode="L", background="black").read(tmp_path / name)) == [10, 0], name
        assert values_of(GREY.read(tmp_path / name)) == [10, 255], name


def test_orientation_is_left_alone_as_timm_does(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    colours((24, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert RGB.read(tmp_path / "a.jpg").size == (24, 20)


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 4), value) for value in (7, 99)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert set(values_of(GREY.read(tmp_path / "a.gif"))) == {7}


PNG, JPG = saved(colours(), "png"), saved(colours((200, 150)), "jpg")
BAD = {
    "empty.png": (b"", "the file is empty"),
    "text.jpg": (b"no image", "none of the formats that Pillow reads"),
    "bomb.png": (bomb(), "3600000000 pixels"),
    "chunk.png": (with_text(PNG, last=False), "MAX_TEXT_CHUNK"),
    "tail.png": (with_text(PNG, last=True), "MAX_TEXT_CHUNK"),
    "slim.png": (saved(Image.new("L", (5000, 1)), "png"), "5000x1"),
    **{f"cut.{ending}": (saved(colours((200, 150)), ending)[:-1500], "") for ending in PLAIN[:6]},
    "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of the formats"),
    "new\nline\x1b[31m.png": (b"", "empty"),
    os.fsdecode(b"bytes\xff.png"): (b"", "empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_one_line_that_names_the_file(tmp_path: Path, name: str) -> None:
    content, why = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        RGB.read(tmp_path / name)
    line = str(caught.value)
    assert line.isprintable()
    assert printable(name) in line
    with quiet():
        whole = RGB.probe(tmp_path / name, decode=True)
    assert whole.problem is not None
    assert why in whole.problem
    assert " cannot be read as an image: " in line


@pytest.mark.parametrize("name", [name for name in BAD if name != "tail.png"])
def test_the_header_and_the_end_tell_a_file_that_was_cut(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BAD[name][0])
    with quiet():
        assert RGB.probe(tmp_path / name, decode=False).problem


def test_what_is_no_file_is_told_and_never_waited_for(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("nowhere")
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    with quiet():
        problems = {path.name: RGB.probe(path, decode=True).problem for path in sorted(tmp_path.iterdir())}
    assert set(problems) == {"folder.png", "link.png", "loop.png", "pipe.png"}
    assert all(problems.values())
    for name in ("folder.png", "link.png", "gone.png", "loop.png"):
        with pytest.raises(DataError, match=name):
            RGB.read(tmp_path / name)


def test_what_is_no_fault_of_the_picture_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a network that was down for a second would be remembered as a bad file."""
    path = tmp_path / "a.png"
    path.write_bytes(PNG)

    def down(*arguments: object, **options: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("objectives.pictures.reading.Image.open", down)
    with pytest.raises(DataError, match=r"a\.png cannot be read: Input/output error"):
        RGB.probe(path, decode=False)


def test_a_probe_tells_depth_and_transparency(tmp_path: Path) -> None:
    images = {
        "deep.tif": Image.fromarray(np.array([[3, 4000]], dtype=np.uint16)),
        "float.tif": Image.fromarray(np.array([[-1, np.inf, 0.5]], dtype=np.float32)),
        "clear.png": HALF,
        "solid.png": colours().convert("RGBA"),
    }
    found = {}
    for name, image in images.items():
        image.save(tmp_path / name)
        found[name] = RGB.probe(tmp_path / name, decode=True)
    assert (found["deep.tif"].deep, found["deep.tif"].extremes) == ((0, 65535), (3, 4000))
    assert (found["float.tif"].deep, found["float.tif"].extremes) == ((0, 1), (-1, 0.5))
    assert [found[name].transparent for name in images] == [False, False, True, False]
    assert RGB.probe(tmp_path / "solid.png", decode=False).transparent, "the header does not tell"


def test_a_reading_goes_through_json() -> None:
    for reading in (RGB, Reading(mode="L", pixel_range=(0, 4095), background="black")):
        assert Reading.from_json(json.loads(json.dumps(reading.to_json()))) == reading
    assert reading_for(1).mode == "L"


@pytest.mark.parametrize("values", [(5, 5), (5, 1), (0, float("inf")), (float("nan"), 1), (1,)])
def test_a_range_that_is_none_is_refused(values: Any) -> None:
    with pytest.raises(ConfigError, match="pixel_range must be two values low < high"):
        Reading(mode="L", pixel_range=values)
