"""What a launch has running, kept in a file of the run directory: for whoever looks at the run from outside.

Nothing is continued from it; where it cannot be written, the search goes on without. `search.run.activity` reads it.
"""

import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from objectives.runtime.progress import Step
from search.driver.observer import Observer
from search.driver.outlook import Outlook
from search.layout import RUNNING
from search.run.activity import RunningTrial, write_running
from search.run.summary import RunSummary
from search.trial import Proposal, Trial

_EVERY = 1.0  # seconds between two writings


class Activity(Observer):
    """Writes down which trials run, at most once a second.

    Args:
        directory: of the run.
        steps: of every fine-tune.
    """

    def __init__(self, directory: Path, steps: int) -> None:
        self._directory, self._steps = directory, steps
        self._trials: dict[int, RunningTrial] = {}
        self._changed, self._due = False, 0.0

    def began(self, directory: Path, summary: RunSummary, outlook: Outlook, steps: int) -> None:
        self._steps = steps  # none, where probing has found that no fine-tune helps

    def started(self, proposal: Proposal) -> None:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self._trials[proposal.number] = RunningTrial(
            number=proposal.number, label=proposal.label, space=proposal.space, since=since, step=0, steps=self._steps
        )
        self._change()

    def step(self, number: int, step: Step) -> None:
        if number in self._trials:
            self._trials[number] = replace(self._trials[number], step=step.step)
            self._change()

    def rung(self, number: int, step: int, error: float) -> None:
        if number in self._trials:
            self._trials[number] = replace(self._trials[number], step=step, rung=step, error=error)
            self._change()

    def ended(self, trial: Trial) -> None:
        self._trials.pop(trial.proposal.number, None)
        self._change()

    def waiting(self) -> None:
        """Write what has changed, unless that was done within the last second."""
        if self._changed and time.monotonic() >= self._due:
            self._changed, self._due = False, time.monotonic() + _EVERY
            with suppress(OSError):
                write_running(self._directory, [self._trials[number] for number in sorted(self._trials)])

    def closed(self) -> None:
        with suppress(OSError):
            (self._directory / RUNNING).unlink(missing_ok=True)

    def _change(self) -> None:
        self._changed = True
        self.waiting()
