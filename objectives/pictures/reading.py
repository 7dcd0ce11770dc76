"""How a picture file is read: which files are pictures, what becomes of deep and transparent pixels, what cannot be read."""

import errno
import os
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import IO, Any, get_args

import numpy as np
from PIL import Image, UnidentifiedImageError

from objectives.pictures.options import Background, Mode, check_pixel_range
from spaces.errors import ConfigError, DataError, first_line, printable

# Kinds of files that Pillow registers, but that are no pictures to it (stubs, an index, a film) or that other programs draw.
_NO_PICTURES = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")
_COMMON = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")  # tried first
_OUTSIDE = {"MPO": "JPEG"}  # opened by the reader of another kind

_SLIMMEST = 1000  # one side to the other
_LEVELS = {"white": 255, "black": 0, "grey": 128}
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"\0\0\0\0IEND\xaeB`\x82", "GIF": b";"}  # of a whole file
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}

# What the system says of one file; anything else (too many open files, a network that is down) is no fault of the picture.
_OF_THE_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def _kinds() -> dict[str, str]:
    """Ending -> the kind of Pillow's that opens it."""
    Image.init()
    known = {ending: _OUTSIDE.get(kind, kind) for ending, kind in Image.registered_extensions().items()}
    return {ending: kind for ending, kind in known.items() if kind in Image.OPEN and kind not in _NO_PICTURES}


_KINDS = _kinds()
ENDINGS: frozenset[str] = frozenset(_KINDS)
_FORMATS = tuple(dict.fromkeys([*(kind for kind in _COMMON if kind in Image.OPEN), *sorted(_KINDS.values())]))


def is_hidden(name: str) -> bool:
    """Whether a file is one that systems put beside pictures, which nobody means."""
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini")


def is_picture(name: str) -> bool:
    """Whether a file of this name is taken for a picture: its ending is one that Pillow reads, and it is not hidden."""
    return not is_hidden(name) and PurePath(name).suffix.lower() in ENDINGS


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of Pillow's: what it can read is read, and what it cannot is an error. Not for several threads at once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True)
class Found:
    """What a look at one picture has found.

    Attributes:
        problem: why it cannot be read; None where it can.
        deep: the whole range of its type, where it has more than 8 bits of grey.
        transparent: some of it is not opaque; where it was not decoded, it has what could tell.
        extremes: the darkest and the brightest finite value of a deep picture that was decoded.
    """

    problem: str | None = None
    deep: tuple[float, float] | None = None
    transparent: bool = False
    extremes: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How pictures become what a model's transform takes: 8 bits in one mode. The same for training, export and predict.

    The first frame is read, and turned by nothing: timm's pipeline does not look at EXIF orientation either.

    Attributes:
        mode: of the result.
        pixel_range: values of pictures of more than 8 bits that become black and white; what is outside is clamped. By
            default the whole range of their type: 0 to 65535 of integers, 0 to 1 of floating-point numbers.
        background: what transparent pictures are laid over; ignored drops the transparency, as Pillow's convert does.
    """

    mode: Mode
    pixel_range: tuple[float, float] | None = None
    background: Background = "white"

    def __post_init__(self) -> None:
        check_pixel_range(self.pixel_range)
        for name, value, allowed in (("mode", self.mode, Mode), ("background", self.background, Background)):
            if value not in get_args(allowed):
                raise ConfigError(f"{name} must be one of {', '.join(get_args(allowed))}, got {value!r}")

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Reading":
        """Inverse of `to_json`."""
        given = values.get("pixel_range")
        return cls(**{**values, "pixel_range": None if given is None else (float(given[0]), float(given[1]))})

    def to_json(self) -> dict[str, Any]:
        """mode, pixel_range and background as JSON holds them."""
        return {**asdict(self), "pixel_range": None if self.pixel_range is None else list(self.pixel_range)}

    def read(self, source: str | os.PathLike[str] | IO[bytes], name: str | None = None) -> Image.Image:
        """The picture in a file, 8 bits in `mode`.

        Args:
            source: a path, or an open file.
            name: what to call it in an error; the path by default.

        Raises:
            DataError: it cannot be read, for whatever reason; the message names it.
        """
        called = printable(str(source) if name is None else name)
        try:
            with quiet(), _opened(source) as image:
                return self.convert(image)
        except FileNotFoundError as error:
            raise DataError(f"no image at {called}") from error
        except Exception as error:  # every format of Pillow's raises its own kinds
            raise DataError(f"{called} cannot be read as an image: {_reason(error)}") from error

    def convert(self, image: Image.Image) -> Image.Image:
        """An image of any mode as 8 bits in `mode`; what it raises is Pillow's."""
        if image.mode == self.mode and not image.has_transparency_data:
            return image.copy()
        if _is_deep(image):
            image = self._scaled(image)
        elif self.background != "ignored" and image.has_transparency_data:
            return self._laid_over(image)
        if image.mode == "LAB":  # Pillow has a way to RGB alone
            image = image.convert("RGB")
        return image.convert(self.mode)

    def probe(self, path: Path, decode: bool) -> Found:
        """Look at a picture file. Never raises for what is wrong with the file; to be called within `quiet`.

        Args:
            path: of the file.
            decode: read all of it; else the header alone, and all of it only where its end is not what it should be.

        Raises:
            DataError: the file cannot be read for a reason that is not its own.
        """
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for ever
                return Found(problem="it is no file")
            with path.open("rb") as file:
                return self.probe_open(file, str(path), decode)
        except OSError as error:
            return _problem(error, str(path))

    def probe_open(self, file: IO[bytes], name: str, decode: bool) -> Found:
        """As `probe`, of a picture in an open file."""
        try:
            with _opened(file) as image:
                return self._found(image, decode or not _ends_well(file, image.format))
        except Exception as error:
            empty = isinstance(error, UnidentifiedImageError) and not file.seek(0, os.SEEK_END)
            return Found(problem="the file is empty") if empty else _problem(error, name)

    def _found(self, image: Image.Image, decode: bool) -> Found:
        deep, transparent = _whole_range(image) if _is_deep(image) else None, image.has_transparency_data
        if not decode:
            return Found(deep=deep, transparent=transparent)
        image.load()
        extremes = _extremes(image) if deep else None
        transparent = transparent and (deep is not None or min(_layer(image).getchannel("A").tobytes()) < 255)
        self.convert(image)
        return Found(deep=deep, transparent=transparent, extremes=extremes)

    def _laid_over(self, image: Image.Image) -> Image.Image:
        layer, level = _layer(image), _LEVELS[self.background]
        ground = Image.new("RGBA", layer.size, (level, level, level, 255))
        return Image.alpha_composite(ground, layer).convert(self.mode)

    def _scaled(self, image: Image.Image) -> Image.Image:
        """A deep picture as 8 bits of grey."""
        low, high = self.pixel_range or _whole_range(image)
        image.load()
        values = np.asarray(image)
        shares = np.clip((values.astype(np.float32) - low) / (high - low), 0, 1)
        grey = np.nan_to_num(np.rint(255 * shares)).astype(np.uint8)
        hole = image.info.get("transparency")  # of a PNG: the value that is transparent
        if isinstance(hole, int) and self.background != "ignored":
            grey[values == hole] = _LEVELS[self.background]
        return Image.fromarray(grey)


def reading_for(channels: int, pixel_range: tuple[float, float] | None = None, background: Background = "white") -> Reading:
    """How pictures are read for a model of so many channels.

    Raises:
        DataError: pictures have no such number of channels.
    """
    if channels not in (1, 3):
        raise DataError(f"the model takes images of {channels} channels, but images are read as grey (1) or RGB (3)")
    return Reading(mode="L" if channels == 1 else "RGB", pixel_range=pixel_range, background=background)


def _opened(source: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    image = Image.open(source, formats=_FORMATS)
    if max(image.size) > _SLIMMEST * min(image.size):  # resized to the model's size, it would fill the memory
        raise ValueError(f"its sides, {image.width}x{image.height} pixels, are too unlike: at most {_SLIMMEST} to 1 is read")
    return image


def _problem(error: Exception, name: str) -> Found:
    """What an error says of a picture.

    Raises:
        DataError: it says nothing of it: whatever is read now could fail.
    """
    if isinstance(error, MemoryError) or getattr(error, "errno", None) not in (None, *_OF_THE_FILE):
        raise DataError(f"{printable(name)} cannot be read: {_reason(error)}") from error
    return Found(problem=_reason(error))


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _whole_range(image: Image.Image) -> tuple[float, float]:
    if image.mode == "F":
        return 0.0, 1.0
    bits = getattr(image, "tag_v2", {}).get(258)  # BitsPerSample of a TIFF: Pillow gives 12 bits as they are, in 16
    return 0.0, 4095.0 if bits == (12,) else 65535.0


def _extremes(image: Image.Image) -> tuple[float, float] | None:
    values = np.asarray(image)
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else None


def _layer(image: Image.Image) -> Image.Image:
    """With an alpha channel that says what is transparent."""
    return image.convert(_PREMULTIPLIED.get(image.mode, "RGBA")).convert("RGBA")


def _ends_well(file: IO[bytes], kind: str | None) -> bool:
    """Whether a file ends as a whole one of its format does; False where its format does not tell."""
    place = file.tell()
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 12))
        end = file.read()
        if kind == "WEBP":
            file.seek(4)
            return int(struct.unpack("<I", file.read(4))[0]) + 8 <= size
    finally:
        file.seek(place)
    return any(kind == name and end.endswith(sign) for name, sign in _ENDS.items())


def _reason(error: BaseException) -> str:
    """Why a picture cannot be read, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "its content is none of the formats that Pillow reads"
    if isinstance(error, MemoryError):
        return "its pixels do not fit in the memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = printable(first_line(error))
    known = isinstance(error, OSError | ValueError | SyntaxError | Image.DecompressionBombError)
    return said if known or said == type(error).__name__ else f"{type(error).__name__}: {said}"
