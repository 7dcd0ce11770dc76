"""Where the pictures of a map-style data set are: files in folders, what a reader of timm's opens, or the items of the set."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from objectives.pictures.digits import Digits
from objectives.pictures.reading import Found, Reading
from spaces.errors import DataError, first_line, printable

SplitName = Literal["train", "search", "test"]


class Pictures(Protocol):
    """The pictures of one data set, by their indices.

    Attributes:
        threads: whether several threads may look at them at once.
    """

    threads: bool

    def name(self, index: int) -> str:
        """What to call a picture; the path of a file."""

    def group(self, index: int) -> str:
        """Which other pictures it is checked and remembered with."""

    def stamp(self, group: str, looks: Sequence[tuple[int, bool]]) -> str | None:
        """Digest of these pictures of a group (indices, and whether they are decoded), that another one changes; or None."""

    def probe(self, index: int, reading: Reading, decode: bool) -> Found:
        """Look at one."""

    def read(self, index: int, reading: Reading) -> tuple[Image.Image, int]:
        """One and its label.

        Raises:
            DataError: it cannot be read, or its label is no number.
        """


class Files:
    """Pictures in files.

    Args:
        samples: (path, label) of each.
        root: what their names are told from.
    """

    threads = True

    def __init__(self, samples: Sequence[tuple[str, int]], root: str | None) -> None:
        self.samples, self.root = samples, root or "."

    def name(self, index: int) -> str:
        return str(self.samples[index][0])

    def group(self, index: int) -> str:
        return os.path.dirname(self.samples[index][0])  # noqa: PTH120  (a million of them)

    def stamp(self, group: str, looks: Sequence[tuple[int, bool]]) -> str | None:
        """Of their names, sizes and times of change, by one look at the folder."""
        found = _listed(group)
        digest = hashlib.sha256(repr(os.path.abspath(group)).encode())  # noqa: PTH100
        for index, decode in looks:
            name = os.path.basename(self.samples[index][0])  # noqa: PTH119
            digest.update(repr((name, found.get(name), decode)).encode())
        return digest.hexdigest()

    def probe(self, index: int, reading: Reading, decode: bool) -> Found:
        return reading.probe(Path(self.samples[index][0]), decode)

    def read(self, index: int, reading: Reading) -> tuple[Image.Image, int]:
        path, label = self.samples[index]
        return reading.read(path), int(label)

    def mark(self, indices: Iterable[int]) -> str:
        """Digest of the names, sizes and labels of these pictures, in this order, wherever the data set lies.

        Times of change are not in it: a copy has others.
        """
        digest, folders, files = hashlib.sha256(), dict[str, str](), dict[str, dict[str, tuple[int, int]]]()
        for index in indices:
            path, label = self.samples[index]
            folder, name = os.path.split(path)
            if folder not in folders:
                folders[folder], files[folder] = os.path.relpath(folder, self.root), _listed(folder)
            size, _ = files[folder].get(name, (-1, 0))
            digest.update(f"{folders[folder]}\0{name}\0{size}\0{int(label)}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


class Opened:
    """Pictures that a reader of timm's opens (hfds/...).

    timm's own data set would give the next picture, of whatever split, in place of one that cannot be read.
    """

    threads = False

    def __init__(self, reader: Any, what: str) -> None:
        self.reader, self.what = reader, what

    def name(self, index: int) -> str:
        try:
            known = self.reader.filename(index)
        except Exception:  # a reader need not know
            known = None
        return f"image {index} of {self.what}" + (f" ({known})" if known else "")

    def group(self, index: int) -> str:
        return self.what

    def stamp(self, group: str, looks: Sequence[tuple[int, bool]]) -> str | None:
        mark = getattr(getattr(self.reader, "dataset", None), "_fingerprint", None)
        return None if mark is None else hashlib.sha256(repr((mark, list(looks))).encode()).hexdigest()

    def probe(self, index: int, reading: Reading, decode: bool) -> Found:
        try:
            file, *_ = self.reader[index]
        except Exception as error:  # every reader raises its own kind
            return Found(problem=first_line(error))
        with file:
            return reading.probe_open(file, self.name(index), decode)

    def read(self, index: int, reading: Reading) -> tuple[Image.Image, int]:
        name = self.name(index)
        try:
            file, label, *_ = self.reader[index]
        except Exception as error:
            raise DataError(f"{printable(name)} cannot be read: {first_line(error)}") from error
        with file:
            return reading.read(file, name), _number(-1 if label is None else label, name)


class Items:
    """Pictures that the data set itself makes (torch/..., digits)."""

    threads = False

    def __init__(self, base: Dataset[Any], what: str) -> None:
        self.base, self.what = base, what

    def name(self, index: int) -> str:
        return f"image {index} of {self.what}"

    def group(self, index: int) -> str:
        return self.what

    def stamp(self, group: str, looks: Sequence[tuple[int, bool]]) -> str | None:
        return None

    def probe(self, index: int, reading: Reading, decode: bool) -> Found:
        try:
            self.base[index]
        except Exception as error:
            return Found(problem=str(error).removeprefix("no image at ") if isinstance(error, DataError) else first_line(error))
        return Found()

    def read(self, index: int, reading: Reading) -> tuple[Image.Image, int]:
        name = self.name(index)
        try:
            image, label, *_ = self.base[index]
            return reading.convert(image), _number(label, name)
        except DataError:
            raise
        except Exception as error:  # every data set raises its own kind
            raise DataError(f"{name} cannot be read: {first_line(error)}") from error


def pictures_of_splits(
    bases: Mapping[SplitName, Dataset[Any]], what: str, root: str | None, reading: Reading
) -> dict[SplitName, Pictures]:
    """`pictures_of` every split that is not streamed; the same of splits that are parts of one data set."""
    found: dict[int, Pictures] = {}
    for base in bases.values():
        if not isinstance(base, IterableDataset) and id(base) not in found:
            found[id(base)] = pictures_of(base, what, root, reading)
    return {split: found[id(base)] for split, base in bases.items() if id(base) in found}


def pictures_of(base: Dataset[Any], what: str, root: str | None, reading: Reading) -> Pictures:
    """The pictures of a data set.

    Args:
        base: opened by timm or torchvision; what it opens files with is replaced by `reading`.
        what: what to call it in messages.
        root: of its files.
        reading: how they are read.
    """
    reader = getattr(base, "reader", None)
    for holder, name in ((base, "samples"), (base, "imgs"), (reader, "samples")):
        samples = getattr(holder, name, None)
        if isinstance(samples, list) and samples and isinstance(samples[0], tuple) and isinstance(samples[0][0], str):
            return Files(samples, root)
    if reader is not None:
        return Opened(reader, what)
    if hasattr(base, "loader"):
        cast(Any, base).loader = reading.read
    return Items(base, what)


def is_in_memory(base: object) -> bool:
    """Whether a data set has decoded its pictures already."""
    return isinstance(base, Digits) or hasattr(base, "data")


def _listed(folder: str) -> dict[str, tuple[int, int]]:
    """Name -> (size, time of change in ns) of the files of a folder; without those that the system says nothing of."""
    found = {}
    try:
        with os.scandir(folder or ".") as entries:
            for entry in entries:
                try:
                    told = entry.stat()
                except OSError:  # a link to nothing
                    continue
                found[entry.name] = told.st_size, told.st_mtime_ns
    except OSError:  # gone: then none of its files can be read
        pass
    return found


def _number(label: Any, name: str) -> int:
    try:
        return int(label)
    except (TypeError, ValueError) as error:
        raise DataError(f"{printable(name)} has the label {label!r}, which is no number of a class") from error
