"""Arrays of a run in files, row after row: written once, then mapped into the memory of every process that reads them.

Processes of one machine that read the same file share its pages.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from spaces.files import replacing, write_json
from spaces.schema import SIZE, WHOLE, Each, SchemaError, choice, read_json

_INDEX = "index.json"
_TYPES = choice("|u1", "<f4", "<i8")
_SCHEMA = {"batches": [SIZE], "arrays": Each({"type": _TYPES, "shape": [SIZE], "crc32": WHOLE})}


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Arrays whose rows belong together.

    Attributes:
        arrays: name -> rows, [rows, ...]; in files, and read as they are used.
        batches: rows of every batch, in order.
    """

    arrays: Mapping[str, Tensor]
    batches: tuple[int, ...]

    def rows(self) -> Iterator[dict[str, Tensor]]:
        """Name -> rows [B, ...] of every batch."""
        parts = {name: torch.split(array, list(self.batches)) for name, array in self.arrays.items()}
        return (dict(zip(parts, batch, strict=True)) for batch in zip(*parts.values(), strict=True))


@dataclass
class _Array:
    """What is known of a file while it is written."""

    file: IO[bytes]
    kind: str = ""
    shape: tuple[int, ...] = ()
    crc32: int = 0

    def append(self, rows: Tensor) -> None:
        values = np.ascontiguousarray(rows.cpu().numpy())
        if self.kind and (self.kind, self.shape) != (values.dtype.str, values.shape[1:]):
            raise ValueError(f"rows of {values.dtype} {values.shape[1:]} do not fit to those of {self.kind} {self.shape}")
        self.kind, self.shape = values.dtype.str, values.shape[1:]
        content = values.tobytes()
        self.crc32 = zlib.crc32(content, self.crc32)
        self.file.write(content)


def store(folder: Path, batches: Iterable[Mapping[str, Tensor]]) -> None:
    """Write arrays into a folder, which is there when all is written, and not before.

    Args:
        folder: to be made, or to be replaced.
        batches: name -> rows [B, ...], with the same names, types and shapes of rows in each; only one is held at a time.

    Raises:
        OSError: they cannot be written: the disk is full, for example. Nothing is left then.
    """
    with replacing(folder) as partial, ExitStack() as opened:
        partial.mkdir()
        arrays: dict[str, _Array] = {}
        sizes = []
        for batch in batches:
            for name, rows in batch.items():
                if name not in arrays:
                    arrays[name] = _Array(opened.enter_context((partial / name).open("wb")))
                arrays[name].append(rows)
            sizes.append(len(next(iter(batch.values()))))
        opened.close()  # what could not be written is told now
        about = {name: {"type": array.kind, "shape": array.shape, "crc32": array.crc32} for name, array in arrays.items()}
        write_json(partial / _INDEX, {"batches": sizes, "arrays": about})


def open_stored(folder: Path) -> Stored | None:
    """Inverse of `store`; every byte is checked. None where the folder is missing or damaged: then it is made anew."""
    try:
        index = read_json(folder / _INDEX, _SCHEMA)
        batches = tuple(index["batches"])
        arrays = {name: _mapped(folder / name, sum(batches), **entry) for name, entry in index["arrays"].items()}
    except (OSError, ValueError, TypeError):
        return None
    return Stored(arrays=arrays, batches=batches)


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _mapped(path: Path, rows: int, *, type: str, shape: list[int], crc32: int) -> Tensor:
    """The array in a file.

    Raises:
        OSError: there is no such file.
        ValueError: it is not as it was written.
    """
    values = np.memmap(path, dtype=np.dtype(type), mode="c", shape=(rows, *shape))  # c: torch wants to be allowed to write
    if path.stat().st_size != values.nbytes or _checksum(path) != crc32:
        raise SchemaError(f"{path} is damaged")
    return torch.from_numpy(values)


def _checksum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            found = zlib.crc32(chunk, found)
    return found
