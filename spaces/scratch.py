"""Folders for what is needed for a while; what a process that was killed left of its own is removed by the next one."""

import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from spaces.locks import lock_file

PREFIX = "vcs-"  # short: sockets lie in such folders, and the system bounds the length of their paths
_LOCK = ".lock"  # held by the process that has made the folder, as long as it lives


class Scratch:
    """A folder in the temporary one, gone when it is closed, when it is forgotten, and when the process ends.

    A context manager that gives the folder. Whoever makes one removes first what processes that were killed have left.

    Args:
        parent: where to make it; by default the system's temporary folder.
    """

    def __init__(self, parent: Path | None = None) -> None:
        parent = parent or Path(tempfile.gettempdir())
        remove_abandoned(parent)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        fresh = self.path / f"{_LOCK}.new"
        lock = os.open(fresh, os.O_CREAT | os.O_RDWR, 0o600)
        lock_file(lock, wait=True)
        fresh.rename(self.path / _LOCK)  # has its name when it is held: nobody finds it free
        self._closed = weakref.finalize(self, _close, self.path, lock, os.getpid())

    def close(self) -> None:
        """Remove it."""
        self._closed()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def remove_abandoned(parent: Path | None = None) -> None:
    """Remove the folders whose processes are gone.

    A lock tells, not a number of a process: those of a container that shares the temporary folder are not seen from here.

    Args:
        parent: where to look; by default in the system's temporary folder.
    """
    for folder in (parent or Path(tempfile.gettempdir())).glob(f"{PREFIX}*"):
        with suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                lock_file(lock)  # raises where its process lives
                _remove(folder)
            finally:
                os.close(lock)


def _close(folder: Path, lock: int, owner: int) -> None:
    if os.getpid() == owner:  # not a process that was forked from it
        with suppress(OSError):
            _remove(folder)
        os.close(lock)


def _remove(folder: Path) -> None:
    """All of it; the lock last, so that what cannot be removed now is found by the next one."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != _LOCK:
            entry.unlink(missing_ok=True)
    if [entry.name for entry in folder.iterdir()] == [_LOCK]:
        shutil.rmtree(folder, ignore_errors=True)
