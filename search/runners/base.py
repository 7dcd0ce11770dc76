"""Where trials run: one protocol for this process and for workers on other devices."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from objectives.forecast import Forecast
from objectives.runtime.progress import Step
from search.runners.job import AskRung, Need
from search.trial import Ended, Job
from spaces.allocation import Allocation


@dataclass(frozen=True, kw_only=True)
class Listener:
    """What a runner tells while it prepares and waits, always in the caller's thread.

    Attributes:
        stage: how far a preparation is: what, done, in all.
        measured: the dense model's figures are there, and factors are not yet computed.
        step: a trial's number and its latest optimiser step.
        at_rung: asked why a candidate should be stopped at a rung; None to go on.
        notice: something that a person should know: a worker that was lost, a node that came.
    """

    stage: Callable[[str, int, int], None] = lambda what, done, total: None
    measured: Callable[[], None] = lambda: None
    step: Callable[[int, Step], None] = lambda number, step: None
    at_rung: AskRung = lambda proposal, step, error: None
    notice: Callable[[str], None] = lambda text: None


class Runner(Protocol):
    """Runs jobs; the study is asked and told by the caller alone.

    A trial that raises is an outcome with a reason; a trial whose worker was lost is an outcome that says so. Only what
    concerns every trial (`CompressionError`) is raised.

    Attributes:
        limit: seconds after which a trial is taken to hang; None for no limit.
    """

    limit: float | None

    @property
    def free(self) -> int:
        """How many jobs it takes now. May grow and shrink as workers come and go."""
        ...

    @property
    def workers(self) -> int:
        """How many jobs it runs at once when all its workers are there."""
        ...

    @property
    def devices(self) -> list[str]:
        """What the workers that are ready run on: host, device and its name."""
        ...

    def prepare(self, needs: Sequence[Need]) -> None:
        """Make the first worker ready: what is computed once per run lies in the factors' folder afterwards."""
        ...

    def forecast(self, allocation: Allocation) -> Forecast:
        """What a trial of this allocation takes, from a few timed steps on the first worker."""
        ...

    def submit(self, job: Job, folder: Path) -> None:
        """Begin a job; at most `free` of them. The folder is the trial's."""
        ...

    def wait(self, timeout: float = 1.0) -> Ended | None:
        """What ended; None where nothing did within about `timeout` seconds, or `free` may have changed."""
        ...

    def close(self) -> None:
        """Stop everything at once."""
        ...
