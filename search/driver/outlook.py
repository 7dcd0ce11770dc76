"""What a launch will take: machine time and disk, from one forecast trial or from those that finished."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from objectives.data.stored import size_of
from objectives.training.run_batches import CACHE
from objectives.units import format_size
from search.driver.pace import Expected
from spaces.errors import RunError


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The rest of a search, as it looks before its first trial.

    Attributes:
        trials: in the run when it is done.
        finished: of these, already.
        workers: trials at once.
        seconds: of one trial.
        weights: bytes of one trial's weights.
        free: bytes of disk that are free.
        kept, needed: bytes of what all trials read: on the disk, and if all of it were kept there.
        recorded: finished trials whose time it was taken from; 0 where a trial was timed.
    """

    trials: int
    finished: int
    workers: int
    seconds: float
    weights: int
    free: int
    kept: int = 0
    needed: int = 0
    recorded: int = 0

    @property
    def left(self) -> int:
        """Trials that are still to be run: none where more are finished than are asked for."""
        return max(0, self.trials - self.finished)

    @property
    def machine_hours(self) -> float:
        """Worker-hours of the trials that are left; GPU-hours where each worker has one GPU."""
        return self.left * self.seconds / 3600

    @property
    def hours(self) -> float:
        """Time until they are done, in whole rounds of the workers."""
        return -(-self.left // self.workers) * self.seconds / 3600

    @property
    def most(self) -> int:
        """Bytes of weights if every trial that is left came to lie on the front."""
        return self.left * self.weights

    @property
    def least(self) -> int:
        """Bytes without which the first trials cannot keep their weights."""
        return min(self.workers, self.left) * self.weights


def outlook_of(directory: Path, trial: Expected, trials: int, finished: int, workers: int, needed: int) -> Outlook:
    """The outlook of a launch.

    Args:
        directory: of the run.
        trial: what one takes.
        trials: in the run when it is done.
        finished: of these, already.
        workers: trials at once.
        needed: bytes of what all trials read.

    Raises:
        RunError: the disk has no room for the weights of the trials that run at once.
    """
    free = shutil.disk_usage(directory).free
    outlook = Outlook(
        trials=trials, finished=finished, workers=workers,
        seconds=trial.seconds, weights=trial.weights, free=free, recorded=trial.recorded,
        kept=size_of(directory / CACHE), needed=needed,
    )  # fmt: skip
    if outlook.least > free:
        raise RunError(
            f"{directory} has {format_size(free)} free, {workers} trials at once need {format_size(outlook.least)}: "
            "make room, or choose another --output"
        )
    return outlook
