"""Format numbers: every folder that this project writes says which format it has, and a reader accepts only its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spaces.errors import CompressionError, shown

FORMAT = "format"  # the key that a file has its number under


def check_format(path: Path, content: Mapping[str, Any], own: int, error: type[CompressionError], remedy: str) -> None:
    """Raise unless a file has the format that this version writes.

    Args:
        path: of the file, for the error.
        content: of the file.
        own: the number of the format that is read here.
        error: what to raise.
        remedy: what to do about a file of an older format.

    Raises:
        CompressionError: `error`; the file has a newer format, an older one, or no number.
    """
    found = content.get(FORMAT)
    if type(found) is not int:
        said = "no format number" if found is None else f"{shown(found)} in place of a format number"
        raise error(
            f"{path} has {said}: an older version or another program wrote it (this version reads format {own}): {remedy}"
        )
    if found > own:
        raise error(
            f"{path} was written by a newer version (format {shown(found)}, this one reads {own}): "
            "pip install -U vit-compression-search"
        )
    if found < own:
        raise error(f"{path} was written by an older version (format {shown(found)}, this one reads {own}): {remedy}")
