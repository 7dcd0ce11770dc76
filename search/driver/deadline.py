"""How long the trials of a launch may take: each by itself, and all of them together."""

import time

from search.driver.observer import Observer
from search.runners.base import Runner
from search.runners.resources import MachineConfig
from search.trial import Trial

_LEAST_LIMIT = 600.0  # seconds before any trial is taken to hang
_PATIENCE = 10.0  # times the forecast, or the slowest trial so far


class Deadline(Observer):
    """Says when no trial should begin any more, and tells the runner when one hangs.

    Args:
        runner: told the limit of a trial.
        machines: with the hours of the launch and the limit of a trial, where they are given.
        began: when the launch did, by the monotonic clock.

    Attributes:
        seconds: of the slowest trial so far, or what one is expected to take at most.
    """

    def __init__(self, runner: Runner, machines: MachineConfig, began: float) -> None:
        self.seconds = 0.0
        self._runner, self._machines, self._began = runner, machines, began

    def expect(self, seconds: float) -> None:
        """Take note that a trial may take so long."""
        self.seconds = max(self.seconds, seconds)
        self._runner.limit = self._machines.trial_timeout or max(_LEAST_LIMIT, _PATIENCE * self.seconds)

    def ended(self, trial: Trial) -> None:
        if trial.score is not None:
            self.expect(trial.score.seconds)

    @property
    def is_late(self) -> bool:
        """Whether a trial that began now would not be done within the hours that were given."""
        hours = self._machines.max_hours
        return hours is not None and time.monotonic() + self.seconds > self._began + 3600 * hours
