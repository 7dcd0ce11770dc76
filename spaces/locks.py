"""Locks on open files: held until the file is closed or the process ends, however it ends."""

from typing import IO

import portalocker


def lock_file(file: int | IO[str], wait: bool = False) -> None:
    """Lock an open file, or its descriptor, for this process alone.

    Args:
        file: what to lock.
        wait: until the one that holds the lock gives it up.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: there are no locks here, as on some network disks.
    """
    flags = portalocker.LockFlags.EXCLUSIVE
    try:
        portalocker.lock(file, flags if wait else flags | portalocker.LockFlags.NON_BLOCKING)
    except portalocker.LockException as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise BlockingIOError(str(error)) from error
