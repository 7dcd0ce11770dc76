"""What a launch has running, in a file of the run directory: for whoever looks at the run from outside.

Nothing is continued from it; where it cannot be written, the search goes on without.
"""

import os
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from objectives.runtime.progress import Step
from search.layout import RUNNING
from search.run.schemas import RUNNING_SCHEMA
from search.trial import Proposal
from spaces.files import lives, write_json
from spaces.schema import read_json

_EVERY = 1.0  # seconds between two writings
_SILENT = 60.0  # seconds without one, after which a launch on another machine is taken to be gone


class Running:
    """The trials that run, written down at most once a second.

    Args:
        directory: of the run.
        steps: of every fine-tune.
    """

    def __init__(self, directory: Path, steps: int) -> None:
        self._path, self._steps = directory / RUNNING, steps
        self._trials: dict[int, dict[str, Any]] = {}
        self._changed, self._due = False, 0.0

    def started(self, proposal: Proposal) -> None:
        """A trial begins, or begins again."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        entry = {"number": proposal.number, "label": proposal.label, "space": proposal.space, "since": since}
        self._trials[proposal.number] = {**entry, "step": 0, "steps": self._steps, "rung": None, "error": None}
        self._change()

    def step(self, number: int, step: Step) -> None:
        """A trial took an optimiser step."""
        if number in self._trials:
            self._trials[number]["step"] = step.step
            self._change()

    def rung(self, number: int, step: int, error: float) -> None:
        """A trial was measured at a rung."""
        if number in self._trials:
            self._trials[number].update(step=step, rung=step, error=error)
            self._change()

    def ended(self, number: int) -> None:
        """A trial runs no more."""
        self._trials.pop(number, None)
        self._change()

    def update(self) -> None:
        """Write what has changed, unless that was done within the last second."""
        if self._changed and time.monotonic() >= self._due:
            self._changed, self._due = False, time.monotonic() + _EVERY
            trials = [self._trials[number] for number in sorted(self._trials)]
            with suppress(OSError):
                write_json(self._path, {"host": socket.gethostname(), "pid": os.getpid(), "trials": trials})

    def close(self) -> None:
        """Nothing runs any more."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _change(self) -> None:
        self._changed = True
        self.update()


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
