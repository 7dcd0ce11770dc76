"""What a run keeps of its dense model in the factors' folder, and shares with the runs beside it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from spaces.files import replacing

T = TypeVar("T")


def read_stored(path: Path, read: Callable[[Path], T]) -> T | None:
    """What `read` makes of a file of the factors' folder; None where there is none.

    A file that only a sister run has (another run directory beside this one) is read there, and copied.
    """
    folder = path.parent
    sisters = folder.parent.parent.glob(f"*/{folder.name}/{path.name}")
    found = next((each for each in (path, *sisters) if each.exists()), None)
    if found is None:
        return None
    content = read(found)
    if found != path:
        with replacing(path) as partial:
            shutil.copyfile(found, partial)
    return content
