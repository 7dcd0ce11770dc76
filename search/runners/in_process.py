"""Trials in this process, one at a time."""

import time
from collections.abc import Sequence
from pathlib import Path

from objectives.evaluator import Evaluator
from objectives.forecast import Forecast, forecast
from objectives.runtime.device import name_of
from objectives.runtime.progress import Step
from search.runners.base import Listener
from search.runners.job import Need, compute, run_job
from search.trial import Ended, Job
from spaces.allocation import Allocation


class InProcessRunner:
    """Runs one job at a time, in this process, on the dense model's device.

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
        return [name_of(self._evaluator.dense.device)]

    def prepare(self, needs: Sequence[Need]) -> None:
        compute(self._evaluator.dense, needs, self._listener.measured)

    def forecast(self, allocation: Allocation) -> Forecast:
        return forecast(self._evaluator, allocation)

    def submit(self, job: Job, folder: Path) -> None:
        self._submitted.append((job, folder))

    def wait(self, timeout: float = 1.0) -> Ended | None:
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
