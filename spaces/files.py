"""Writing files and folders so that a reader sees the old one or the new one, never a half."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the name of `path`, on failure it is removed.

    Works for a file and for a folder; an existing folder is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        if partial.is_dir() and path.is_dir():
            shutil.rmtree(path)
        partial.replace(path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def remove_partials(folder: Path) -> None:
    """Remove what processes that were killed left of `replacing`, in this folder and all below."""
    for path in list(folder.rglob(".*.partial")):
        pid = path.name.split(".")[-2]
        if pid.isdecimal() and not lives(int(pid)):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def lives(pid: int) -> bool:
    """Whether a process of this number is there on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors atomically as safetensors, readable for whoever the umask allows (the library's own are private)."""
    with replacing(path) as partial:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial, metadata)
        mask = os.umask(0)
        os.umask(mask)
        partial.chmod(0o666 & ~mask)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinities are refused.

    Raises:
        ValueError: `value` holds a NaN or an infinity.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def cut_torn_line(path: Path) -> None:
    """Drop a last line that a kill or a full disk left unfinished; the next append would glue to it.

    A file that is not there stays so.
    """
    if not path.exists():
        return
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        with path.open("r+b") as file:
            file.truncate(end)
