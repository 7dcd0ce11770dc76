"""What a launch of a run has running, as `search.driver.activity` writes it down."""

import socket
import time
from pathlib import Path
from typing import Any

from search.layout import RUNNING
from search.run.schemas import RUNNING_SCHEMA
from spaces.files import lives
from spaces.schema import read_json

_SILENT = 60.0  # seconds without one, after which a launch on another machine is taken to be gone


def running_of(directory: Path) -> list[dict[str, Any]]:
    """The trials that a launch has running now: number, label, space, since (ISO 8601, UTC), step, steps, rung, error (at it).

    A launch that was killed leaves its file, so its process is looked for, or, on another machine, how lately it wrote. The
    run's lock is not tried for that: a launch that comes in this moment would find it taken.
    """
    path = directory / RUNNING
    try:
        found = read_json(path, RUNNING_SCHEMA)
        here = found["host"] == socket.gethostname()
        works = lives(found["pid"]) if here else time.time() - path.stat().st_mtime < _SILENT
        return list(found["trials"]) if works else []
    except (OSError, ValueError):
        return []
