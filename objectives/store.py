"""What a run keeps of its dense model in the factors' folder, and shares with the runs beside it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from spaces.errors import CompressionError
from spaces.files import replacing

T = TypeVar("T")


def read_stored(path: Path, read: Callable[[Path], T]) -> T | None:
    """What `read` makes of a file of the factors' folder; None where there is none.

    A file that only a sister run has (another run directory beside this one) is read there, and copied; one that cannot be
    read there is that run's concern, and is passed over.
    """
    if path.exists():
        return read(path)
    for found in path.parent.parent.parent.glob(f"*/{path.parent.name}/{path.name}"):
        try:
            content = read(found)
        except (CompressionError, OSError):
            continue
        with replacing(path) as partial:
            shutil.copyfile(found, partial)
        return content
    return None
