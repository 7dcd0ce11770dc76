"""A warm worker: model, images and factors stay loaded, and one job after another is run on them. Knows nothing of Ray.

Preparing and running give events as they happen, so that whoever holds the worker can show them, and answer at a rung.
"""

import faulthandler
import os
import queue
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from objectives.dense_model import DenseModel, load_dense
from objectives.evaluator import Evaluator
from objectives.forecast import Forecast, forecast
from objectives.objective import Objective
from objectives.runtime.device import name_of
from objectives.runtime.distributed import Group, join_group
from objectives.runtime.progress import Step
from search.runners.job import Need, compute, run_job, wait_for_rate
from search.trial import Ended, Job, Proposal
from spaces.allocation import Allocation
from spaces.errors import RunError

_SECONDS = 1.0  # between two reports of optimiser steps


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How far a preparation is."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Measured:
    """The dense model's figures are in the factors' folder."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A worker that takes jobs.

    Attributes:
        host, pid, device: where it is.
        stderr: file that its process writes to, on that host.
    """

    host: str
    pid: int
    device: str
    stderr: str


@dataclass(frozen=True, kw_only=True)
class AtRung:
    """A trial that waits at a rung for `Worker.answer`."""

    step: int
    error: float


Event = Stage | Measured | Ready | Step | AtRung | Ended


class Worker:
    """An evaluator in a process of its own.

    Args:
        objective: what to evaluate by.
        directory: working directory of the search, in which its relative paths mean something.
        threads: CPU threads.
        processes: that fine-tune each candidate together; with more than one, they have to `join` before they take jobs.
    """

    def __init__(self, objective: Objective, directory: str, threads: int, processes: int = 1) -> None:
        self._objective, self._directory, self._threads, self._processes = objective, Path(directory), threads, processes
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._evaluator: Evaluator | None = None

    def prepare(self, needs: Sequence[Need], rank: int = 0) -> Iterator[Stage | Measured | Ready]:
        """Load or compute all that trials use.

        Args:
            needs: what that is.
            rank: of this process in the group that it will join.

        Raises:
            RunError: the run directory is not to be seen from here.
            CompressionError: what concerns every trial.
        """
        run = self._objective.factors.parent
        if not (self._directory.is_dir() and (self._directory / run).is_dir()):
            raise RunError(f"{run} is not to be seen from {socket.gethostname()}: choose an --output that all nodes share")
        os.chdir(self._directory)

        def work(tell: Callable[[Event], None]) -> Ready:
            def stage(what: str, done: int, total: int) -> None:
                tell(Stage(what=what, done=done, total=total))

            dense = load_dense(self._objective, stage)
            compute(dense, needs, lambda: tell(Measured()), Group(rank=rank, size=self._processes))
            self._evaluator = Evaluator(dense)
            return self._place(dense)

        yield from self._stream(work)  # type: ignore[misc]

    def join(self, needs: Sequence[Need], rank: int, address: str, port: int) -> Ready:
        """Become one of several processes that fine-tune each candidate together; prepares where that was not done.

        Args:
            needs: as for `prepare`; computed by the first process before the others join.
            rank: which of them.
            address, port: where the first one listens.
        """
        torch.set_num_threads(self._threads)
        if self._evaluator is None:
            for _ in self.prepare(needs, rank):
                pass
        dense = self._ready.dense
        self._evaluator = Evaluator(dense, join_group(rank, self._processes, address, port, dense.device))
        return self._place(dense)

    def follow(self, proposal: Proposal) -> None:
        """Take part in a trial that the first process of the group runs."""
        torch.set_num_threads(self._threads)
        assert proposal.allocation is not None
        wait_for_rate(self._ready.dense)
        self._ready.evaluate(proposal.allocation, proposal.seed)

    def forecast(self, allocation: Allocation) -> Forecast:
        """What a trial takes."""
        torch.set_num_threads(self._threads)
        return forecast(self._ready.alone(), allocation)

    def run(self, job: Job, folder: Path) -> Iterator[Step | AtRung | Ended]:
        """Run a job; ends with its outcome.

        Raises:
            CompressionError: what concerns every trial.
        """

        def work(tell: Callable[[Event], None]) -> Ended:
            def ask_rung(proposal: Proposal, step: int, error: float) -> str | None:
                tell(AtRung(step=step, error=error))
                return self._answers.get()

            return run_job(self._ready, job, folder, tell, ask_rung)

        yield from self._stream(work)  # type: ignore[misc]

    def answer(self, reason: str | None) -> None:
        """Let the trial that waits at a rung go on, or stop it for a reason."""
        self._answers.put(reason)

    def stack(self) -> str:
        """What every thread of this process is doing."""
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file)
            file.seek(0)
            return file.read()

    def _place(self, dense: DenseModel) -> Ready:
        stderr = Path("/proc/self/fd/2").resolve()
        return Ready(host=socket.gethostname(), pid=os.getpid(), device=name_of(dense.device), stderr=str(stderr))

    @property
    def _ready(self) -> Evaluator:
        assert self._evaluator is not None, "not prepared"
        return self._evaluator

    def _stream(self, work: Callable[[Callable[[Event], None]], Event]) -> Iterator[Event]:
        """What `work` tells and then returns; optimiser steps at most once a second."""
        told: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()

        def body() -> None:
            torch.set_num_threads(self._threads)  # of this thread alone
            try:
                told.put(work(told.put))
            except BaseException as error:
                told.put(error)

        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        due = 0.0
        while True:
            event = told.get()
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, Step):
                if time.monotonic() < due:
                    continue
                due = time.monotonic() + _SECONDS
            yield event
            if isinstance(event, Ready | Ended):
                return
