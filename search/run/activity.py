"""running.json: which trials a launch has running, for whoever looks at the run from outside."""

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from search.layout import RUNNING
from spaces.files import lives, write_json
from spaces.schema import NUMBER, SIZE, TEXT, WHOLE, Kind, Maybe, read_json

_SILENT = 60.0  # seconds without one, after which a launch on another machine is taken to be gone
_PID = Kind("the number of a process", lambda value: SIZE.holds(value) and value < 2**31)
_TRIAL = {
    "number": WHOLE, "label": Maybe(TEXT), "space": TEXT, "since": TEXT, "step": WHOLE, "steps": WHOLE,
    "rung": Maybe(WHOLE), "error": Maybe(NUMBER),
}  # fmt: skip
RUNNING_SCHEMA = {"host": TEXT, "pid": _PID, "trials": [_TRIAL]}


@dataclass(frozen=True, kw_only=True)
class RunningTrial:
    """A trial that runs now.

    Attributes:
        number, label, space: of its proposal.
        since: when it began, as ISO 8601 in UTC.
        step: optimiser steps taken.
        steps: of the whole fine-tune.
        rung: the last one that it was measured at, in optimiser steps.
        error: its error there.
    """

    number: int
    label: str | None
    space: str
    since: str
    step: int
    steps: int
    rung: int | None = None
    error: float | None = None


def write_running(directory: Path, trials: Sequence[RunningTrial]) -> None:
    """Write what this process runs.

    Raises:
        OSError: it cannot be written.
    """
    content = {"host": socket.gethostname(), "pid": os.getpid(), "trials": [asdict(trial) for trial in trials]}
    write_json(directory / RUNNING, content)


def running_of(directory: Path) -> tuple[RunningTrial, ...]:
    """The trials that a launch has running now.

    A launch that was killed leaves its file, so its process is looked for, or, on another machine, how lately it wrote. The
    run's lock is not tried for that: a launch that comes in this moment would find it taken.
    """
    path = directory / RUNNING
    try:
        found = read_json(path, RUNNING_SCHEMA)
        here = found["host"] == socket.gethostname()
        works = lives(found["pid"]) if here else time.time() - path.stat().st_mtime < _SILENT
        entries = found["trials"] if works else []
        return tuple(RunningTrial(**{name: entry[name] for name in _TRIAL}) for entry in entries)
    except (OSError, ValueError):
        return ()
