"""Workers that sleep in place of training: a runner in this process, and Ray actors. Errors are those of the surrogate."""

import heapq
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from surrogate import Surrogate

from objectives.forecast import Forecast
from objectives.runtime.progress import Step
from objectives.score import Score
from search.runners.job import Need
from search.runners.worker import Ready
from search.trial import Job, Outcome, Screened, Screening
from spaces.allocation import Allocation

Span = tuple[float, float, bool]  # when a job began and ended, by the monotonic clock, and whether it was a trial
SPREAD = 0.2  # trials take up to so much more or less than their nominal time


class Sleep:
    """What a job takes, and what it finds.

    Args:
        seconds: of a trial, nominally.
        screening: seconds of a screening.
        surrogate: what errors come from.
    """

    def __init__(self, seconds: float, screening: float, surrogate: Surrogate) -> None:
        self.seconds, self.screening, self.surrogate = seconds, screening, surrogate

    def duration(self, job: Job) -> float:
        if isinstance(job, Screening):
            return self.screening
        return self.seconds * (1 + SPREAD * float(np.random.default_rng(job.number).uniform(-1, 1)))

    def result(self, job: Job) -> Outcome | Screened:
        if isinstance(job, Screening):
            divergences = tuple(float(self.surrogate.error(candidate)) for candidate in job.candidates)
            return Screened(number=job.number, divergences=divergences)
        assert job.allocation is not None
        rng, costs = np.random.default_rng(job.number), self.surrogate.costs
        error, before = float(self.surrogate.evaluate(job.allocation, rng)), float(self.surrogate.error(job.allocation))
        score = Score(
            error=error, error_before=before, kl=error, kl_before=before, steps=1, seconds=self.duration(job),
            macs=int(costs.count(job.allocation, "macs")), params=int(costs.count(job.allocation, "params")),
        )  # fmt: skip
        return Outcome(number=job.number, score=score)


class SimulatedRunner:
    """Implements `search.runners.base.Runner`: every worker is a deadline.

    Attributes:
        spans: of the jobs that have ended.
    """

    def __init__(self, workers: int, sleep: Sleep) -> None:
        self.limit: float | None = None
        self.workers, self.sleep = workers, sleep
        self._running: list[tuple[float, int, float, Job]] = []
        self.spans: list[Span] = []

    @property
    def free(self) -> int:
        return self.workers - len(self._running)

    @property
    def devices(self) -> list[str]:
        return ["simulated"] * self.workers

    def prepare(self, needs: Sequence[Need]) -> None:
        pass

    def forecast(self, allocation: Allocation) -> Forecast:
        raise NotImplementedError("nobody asks")

    def submit(self, job: Job, folder: Path) -> None:
        now = time.monotonic()
        heapq.heappush(self._running, (now + self.sleep.duration(job), job.number, now, job))

    def wait(self, timeout: float = 1.0) -> Outcome | Screened | None:
        left = self._running[0][0] - time.monotonic() if self._running else timeout
        time.sleep(max(0.0, min(left, timeout)))
        if not self._running or left > timeout:
            return None
        end, _, start, job = heapq.heappop(self._running)
        self.spans.append((start, end, not isinstance(job, Screening)))
        return self.sleep.result(job)

    def close(self) -> None:
        pass


class Sleeper:
    """An actor with the methods of `search.runners.worker.Worker` that `RayRunner` calls; subclasses set `sleep`.

    Like a real worker it tells of an optimiser step once a second.
    """

    sleep: Sleep

    def __init__(self, objective: Any, directory: str, threads: int, processes: int) -> None:
        pass

    def prepare(self, needs: Sequence[Need]) -> Iterator[Ready]:
        yield Ready(host=socket.gethostname(), pid=os.getpid(), device="simulated", stderr="")

    def run(self, job: Job, folder: Path) -> Iterator[Step | Outcome | Screened]:
        left = self.sleep.duration(job)
        while left > 1:
            time.sleep(1)
            left -= 1
            yield Step(step=1, loss=0.0, lr=0.0)
        time.sleep(left)
        yield self.sleep.result(job)
