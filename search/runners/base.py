"""Where trials run: one protocol for this process and for workers on other devices."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from objectives.evaluator import Evaluator
from objectives.forecast import Forecast, forecast
from objectives.runtime.device import name_of
from objectives.training.finetune import Step
from search.runners.job import AskRung, Job, Outcome, Screened, run_job
from spaces.allocation import Allocation

# What trials of a search use, besides the dense model's figures.
Need = Literal["latency", "factors", "profile"]


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

    def wait(self, timeout: float = 1.0) -> Outcome | Screened | None:
        """What ended; None where nothing did within about `timeout` seconds, or `free` may have changed."""
        ...

    def close(self) -> None:
        """Stop everything at once."""
        ...


class InProcessRunner:
    """Runs one job at a time, in this process, on the evaluator's device.

    A trial beyond the limit is stopped at its next optimiser step; what hangs within one cannot be stopped from inside.
    """

    workers = 1

    def __init__(self, evaluator: Evaluator, listener: Listener) -> None:
        self.limit: float | None = None
        self._evaluator, self._listener = evaluator, listener
        self._submitted: list[tuple[Job, Path]] = []

    @property
    def free(self) -> int:
        return 1 - len(self._submitted)

    @property
    def devices(self) -> list[str]:
        return [name_of(self._evaluator.device)]

    def prepare(self, needs: Sequence[Need]) -> None:
        compute(self._evaluator, needs, self._listener.measured)
        self._evaluator.warm()

    def forecast(self, allocation: Allocation) -> Forecast:
        return forecast(self._evaluator, allocation)

    def submit(self, job: Job, folder: Path) -> None:
        self._submitted.append((job, folder))

    def wait(self, timeout: float = 1.0) -> Outcome | Screened | None:
        if not self._submitted:
            time.sleep(timeout)
            return None
        job, folder = self._submitted[0]
        start = time.monotonic()

        def on_step(step: Step) -> None:
            seconds = time.monotonic() - start
            if self.limit is not None and seconds > self.limit:
                raise TimeoutError(f"not done after {seconds:.0f} s, the limit is {self.limit:.0f} s")
            self._listener.step(job.number, step)

        try:
            return run_job(self._evaluator, job, folder, on_step, self._listener.at_rung)
        finally:
            self._submitted.clear()

    def close(self) -> None:
        self._submitted.clear()


def compute(evaluator: Evaluator, needs: Sequence[Need], measured: Callable[[], None] = lambda: None) -> None:
    """Compute what is computed once per run, or load it where that was done; `measured` is called after the dense figures."""
    if "latency" in needs:  # the first, so that nothing of what follows is on the caches' mind
        _ = evaluator.latency
    _ = evaluator.dense
    measured()
    if "factors" in needs:
        _ = evaluator.factors
    if "profile" in needs:
        _ = evaluator.profile
