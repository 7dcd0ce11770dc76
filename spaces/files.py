"""Writing files and folders so that a reader sees the old one or the new one, never a half."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the name of `path`, on failure it is removed.

    Works for a file and for a folder. An existing folder is moved aside and then removed, so that whatever has its name is
    whole at any moment; of two processes that replace one folder, the last one wins.

    Raises:
        OSError: it cannot be written; where the system names no file, as on a full disk, it is `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_beside(path, path.name)
    _remove(partial)  # a process that had this number left it
    try:
        yield partial
        if partial.is_dir():
            _replace_folder(partial, path)
        else:
            partial.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with suppress(OSError):  # what went wrong before says more
            _remove(partial)


def partial_beside(path: Path, name: str) -> Path:
    """A path beside `path` that is removed by `remove_partials` when this process has ended."""
    return path.with_name(f".{name}.{os.getpid()}.partial")


def remove_partials(folder: Path, below: bool = True) -> None:
    """Remove what processes that were killed left of `replacing`, in this folder and, unless told otherwise, all below."""
    for path in list(folder.rglob(".*.partial") if below else folder.glob(".*.partial")):
        pid = path.name.split(".")[-2]
        if pid.isdecimal() and not lives(int(pid)):
            _remove(path)


def _replace_folder(partial: Path, path: Path) -> None:
    old = partial_beside(path, f"{path.name}.old")
    while True:
        _remove(old)
        with suppress(FileNotFoundError):
            path.rename(old)
        try:
            partial.rename(path)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process has put its own there since
                raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def lives(pid: int) -> bool:
    """Whether a process of this number is there on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OverflowError:  # no system has so many
        return False
    except OSError:  # another user's
        return True
    return True


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
