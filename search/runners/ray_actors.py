"""Trials on Ray: long-lived workers, one job at a time each. A worker that is lost is replaced, and its job given back.

Ray holds nothing that a search needs to be continued: the study's storage and the run directory do.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from objectives.forecast import Forecast
from objectives.objective import Objective
from objectives.runtime.progress import Step
from search.runners.base import Listener
from search.runners.job import Need, keep_stderr
from search.runners.ray_cluster import Connection, Team, check_alive, first_sentence, last_lines
from search.runners.resources import MachineConfig
from search.runners.worker import AtRung, Measured, Ready, Stage, Worker
from search.trial import Ended, Job, Outcome, Proposal
from spaces.allocation import Allocation
from spaces.errors import CompressionError, DivergedError, RunError

_STACK_SECONDS = 3.0
_PARTNER_SECONDS = 10.0  # for the other processes of a group to end a job that the first one has ended
_STARTS = 3  # of one worker that never got ready


@dataclass
class _Slot:
    """Room for one worker, and what is in it. A worker is one process, or a group of them whose first one leads.

    Attributes:
        team: its processes; new ones after a loss.
        events: of the first one's preparation or job, until the last was taken.
        others: calls of the other processes that have not returned.
        prepared: what the first process said when it was prepared.
        ready: the same, when the worker takes jobs; None before.
        job, folder: what it runs.
        began: when its preparation or its job did, by the monotonic clock.
        starts: workers in a row that did not get ready here.
    """

    team: Any = None
    events: Any = None
    others: list[Any] = field(default_factory=list)
    prepared: Ready | None = None
    ready: Ready | None = None
    job: Job | None = None
    folder: Path = field(default_factory=Path)
    began: float = 0.0
    starts: int = 0

    @property
    def idle(self) -> bool:
        return self.ready is not None and self.job is None


class RayRunner:
    """Implements `search.runners.base.Runner` with Ray actors.

    Args:
        objective: what to evaluate by; its factors lie in the run directory.
        config: which machines.
        listener: what to tell.
        worker: what runs in each process.

    Raises:
        RunError: Ray cannot be started, or the cluster cannot be reached.
        ConfigError: more was asked for than there is.
    """

    def __init__(self, objective: Objective, config: MachineConfig, listener: Listener, worker: type[Worker] = Worker) -> None:
        self.limit: float | None = None
        self._listener = listener
        listener.stage("workers", 0, 1)
        self._starting = True  # until the first worker says something
        self.connection = Connection(config)
        self.plan = self.connection.plan
        self._objective = replace(objective, device=self.plan.device)
        self._worker = worker
        self._needs: Sequence[Need] = ()
        self._slots = [_Slot() for _ in range(self.plan.workers)]

    @property
    def free(self) -> int:
        return sum(slot.idle for slot in self._slots)

    @property
    def workers(self) -> int:
        return len(self._slots)

    @property
    def devices(self) -> list[str]:
        return [slot.ready.device for slot in self._slots if slot.ready is not None]

    def prepare(self, needs: Sequence[Need]) -> None:
        self._needs = needs
        self._leader()

    def forecast(self, allocation: Allocation) -> Forecast:
        while True:
            slot = self._leader()
            try:
                return ray.get(slot.team.first.forecast.remote(allocation))  # type: ignore[no-any-return]
            except RayTaskError as error:
                raise error.cause from None
            except RayError as error:
                self._lost(slot, first_sentence(error))

    def _leader(self) -> _Slot:
        """The first worker, when it is ready; where its place was given up, the one that is first then."""
        while (slot := self._slots[0]).ready is None:
            if slot.team is None:
                self._start(slot)
            self._next(timeout=1.0)
        return slot

    def submit(self, job: Job, folder: Path) -> None:
        slot = next(slot for slot in self._slots if slot.idle)
        slot.job, slot.folder, slot.began = job, folder.absolute(), time.monotonic()
        sent = replace(job, attributes={}) if isinstance(job, Proposal) else job  # the sampler's notes stay here
        slot.events = slot.team.first.run.remote(sent, slot.folder)
        if isinstance(sent, Proposal) and sent.recipe is None:  # recipes and screening are for one process
            slot.others = [actor.follow.remote(sent) for actor in slot.team.actors[1:]]

    def wait(self, timeout: float = 1.0) -> Ended | None:
        for slot in self._slots:  # the others start when the first has computed what they read, and has timed its steps alone
            if slot.team is None:
                self._start(slot)
        return self._next(timeout)

    def _next(self, timeout: float) -> Ended | None:
        if hung := next(self._hung(), None):  # also while other workers tell of their steps all the time
            return hung
        waited = {call: slot for slot in self._slots for call in (slot.events, *slot.others) if call is not None}
        if not waited:
            time.sleep(timeout)
            return None
        found, _ = ray.wait(list(waited), num_returns=1, timeout=timeout, fetch_local=False)
        if found:
            slot = waited[found[0]]
            return self._take(slot) if found[0] is slot.events else self._partner(slot, found[0])
        if not any(slot.ready for slot in self._slots):
            check_alive()
        return None

    def close(self) -> None:
        for slot in self._slots:
            self._kill(slot)
        self.connection.close()

    def _start(self, slot: _Slot) -> None:
        slot.job, slot.began = None, time.monotonic()
        slot.team = Team(self._worker, self.plan, self._objective, str(Path.cwd()), self.plan.threads, self.plan.processes)
        slot.events = slot.team.first.prepare.remote(self._needs)

    def _join(self, slot: _Slot) -> None:
        """Make a group of a worker's processes; what is computed once per run lies in the factors' folder by now."""
        try:
            address, port = slot.team.meeting_point()
        except RayError as error:
            self._lost(slot, first_sentence(error))
        else:
            slot.others = [actor.join.remote(self._needs, rank, address, port) for rank, actor in enumerate(slot.team.actors)]

    def _take(self, slot: _Slot) -> Ended | None:
        """The next event of a worker: shown, answered, or returned where it ends a job."""
        try:
            event = ray.get(next(slot.events))
        except RayTaskError as error:  # raised by our code there
            cause = error.cause
            if isinstance(cause, CompressionError):
                raise cause from None
            if slot.ready is None:  # what it cannot prepare, no other can
                raise RunError(f"a worker cannot be prepared: {type(cause).__name__}: {cause}") from error
            return self._lost(slot, f"{type(cause).__name__}: {cause}")
        except (RayError, StopIteration) as error:
            return self._lost(slot, first_sentence(error))
        job = slot.job
        if self._starting:
            self._starting = False
            self._listener.stage("workers", 1, 1)
        if isinstance(event, Stage):
            if not self.devices:  # what later workers prepare, others need not wait for
                self._listener.stage(event.what, event.done, event.total)
        elif isinstance(event, Measured):
            self._listener.measured()
        elif isinstance(event, Ready):
            slot.events, slot.prepared = None, event
            if len(slot.team.actors) > 1:
                self._join(slot)
            else:
                slot.ready, slot.starts = event, 0
        elif isinstance(event, Step) and job is not None:
            self._listener.step(job.number, event)
        elif isinstance(event, AtRung) and isinstance(job, Proposal):
            slot.team.first.answer.remote(self._listener.at_rung(job, event.step, event.error))
        elif isinstance(event, Ended):
            slot.events = None
            why = self._gather(slot)
            if why and isinstance(event, Outcome) and event.score is None:  # what the first process met is a consequence
                return self._lost(slot, why)
            slot.job = None
            if why or (isinstance(event, Outcome) and event.starved):
                self._replace(slot)
            return event
        return None

    def _partner(self, slot: _Slot, call: Any) -> Outcome | None:
        """What a process of a group has to say besides events: that it has joined, is done, or lost, and the group with it."""
        slot.others.remove(call)
        try:
            ray.get(call)
        except RayTaskError as error:
            if isinstance(error.cause, CompressionError):
                raise error.cause from None
            if not isinstance(error.cause, DivergedError):  # that all processes raise, and the first one tells
                return self._lost(slot, f"{type(error.cause).__name__}: {error.cause}")
        except RayError as error:
            return self._lost(slot, first_sentence(error))
        if slot.ready is None and not slot.others:
            slot.ready, slot.starts = slot.prepared, 0
        return None

    def _gather(self, slot: _Slot) -> str | None:
        """Let the other processes of a group end their part of a job: why the group is of no use any more, if it is not."""
        if not slot.others:
            return None
        ended, waiting = ray.wait(slot.others, num_returns=len(slot.others), timeout=_PARTNER_SECONDS)
        slot.others = []
        for call in ended:
            try:
                ray.get(call)
            except RayTaskError:  # told by the first process
                pass
            except RayError as error:
                return first_sentence(error)
        return "a process of its group waits for ever" if waiting else None

    def _lost(self, slot: _Slot, why: str) -> Outcome | None:
        """Replace a worker, and say how the job that it had ended; None where it had none."""
        where = f"pid {slot.ready.pid} on {slot.ready.host}" if slot.ready else "before it was ready"
        reason, job, last = (
            f"its worker was lost ({where}): {why}",
            slot.job,
            last_lines(slot.ready.stderr) if slot.ready else "",
        )
        slot.starts += slot.ready is None
        self._kill(slot)
        if slot.starts < _STARTS:
            self._start(slot)
        else:
            self._slots.remove(slot)
            self._listener.notice(f"a worker did not start {_STARTS} times, going on with {len(self._slots)}: {why}")
        if not self._slots:
            raise RunError(f"no worker could be started: {why}")
        if job is None:
            self._listener.notice(f"a worker was lost ({where}): {why}")
            return None
        return Outcome(number=job.number, score=None, reason=reason + keep_stderr(slot.folder, f"{reason}\n{last}"), lost=True)

    def _hung(self) -> Iterator[Outcome]:
        """Trials beyond the limit, whose workers are replaced."""
        for slot in self._slots:
            seconds = time.monotonic() - slot.began
            if self.limit is None or slot.job is None or seconds < self.limit:
                continue
            stack = ""
            with suppress(RayError):  # GetTimeoutError too: it holds the interpreter
                stack = ray.get(slot.team.first.stack.remote(), timeout=_STACK_SECONDS)
            job, folder = slot.job, slot.folder
            self._replace(slot)
            reason = f"it hung: not done after {seconds:.0f} s, the limit is {self.limit:.0f} s"
            yield Outcome(number=job.number, score=None, reason=reason + keep_stderr(folder, f"{reason}\n{stack}"), lost=True)

    def _replace(self, slot: _Slot) -> None:
        self._kill(slot)
        self._start(slot)

    def _kill(self, slot: _Slot) -> None:
        if slot.team is not None:
            slot.team.kill()
        slot.others = []
        slot.team = slot.events = slot.prepared = slot.ready = None
