"""Trials on Ray: long-lived workers, one job at a time each. A worker that is lost is replaced, and its job given back.

Ray holds nothing that a search needs to be continued: the study's storage and the run directory do.
"""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from objectives.finetune import Step
from objectives.forecast import Forecast
from objectives.objective import Objective
from search.job import Job, Outcome, Screened, keep_stderr
from search.machines import MachineConfig, Plan, plan_workers
from search.runner import Listener, Need
from search.trial import Proposal
from search.worker import AtRung, Ready, Stage, Worker
from spaces.allocation import Allocation
from spaces.errors import CompressionError, RunError

_STACK_SECONDS = 3.0
_LAST_LINES = 60
_STARTS = 3  # of one worker that never got ready
_OBJECT_STORE = 128 << 20  # what passes through it are events: some hundred bytes each


@dataclass
class _Slot:
    """Room for one worker, and what is in it.

    Attributes:
        actor: the worker; a new one after a loss.
        events: of its preparation or its job, until the last was taken.
        ready: what the worker said when it was prepared; None before.
        job, folder: what it runs.
        began: when its preparation or its job did, by the monotonic clock.
        starts: workers in a row that did not get ready here.
    """

    actor: Any = None
    events: Any = None
    ready: Ready | None = None
    job: Job | None = None
    folder: Path = field(default_factory=Path)
    began: float = 0.0
    starts: int = 0

    @property
    def idle(self) -> bool:
        return self.ready is not None and self.job is None


class RayRunner:
    """Implements `search.runner.Runner` with Ray actors.

    Args:
        objective: what to evaluate by; its factors lie in the run directory.
        config: which machines.
        listener: what to tell.
        worker: class of the workers.

    Raises:
        RunError: Ray cannot be started, or the cluster cannot be reached.
        ConfigError: more was asked for than there is.
    """

    def __init__(self, objective: Objective, config: MachineConfig, listener: Listener, worker: type = Worker) -> None:
        self.limit: float | None = None
        self._listener = listener
        self._started = not ray.is_initialized()
        self.plan = connect(config)
        self._objective = replace(objective, device=self.plan.device)
        self._actor: Any = ray.remote(worker).options(**_resources(self.plan))
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
        first = self._slots[0]
        self._start(first)
        while first.ready is None:
            self.wait()
        for slot in self._slots[1:]:  # they read what the first one has computed
            self._start(slot)

    def forecast(self, allocation: Allocation) -> Forecast:
        return ray.get(self._slots[0].actor.forecast.remote(allocation))  # type: ignore[no-any-return]

    def submit(self, job: Job, folder: Path) -> None:
        slot = next(slot for slot in self._slots if slot.idle)
        slot.job, slot.folder, slot.began = job, folder.absolute(), time.monotonic()
        sent = replace(job, attributes={}) if isinstance(job, Proposal) else job  # the sampler's notes stay here
        slot.events = slot.actor.run.remote(sent, slot.folder)

    def wait(self, timeout: float = 1.0) -> Outcome | Screened | None:
        waited = {slot.events: slot for slot in self._slots if slot.events is not None}
        if not waited:
            time.sleep(timeout)
            return None
        found, _ = ray.wait(list(waited), num_returns=1, timeout=timeout, fetch_local=False)
        if found:
            return self._take(waited[found[0]])
        return next(self._hung(), None)

    def close(self) -> None:
        for slot in self._slots:
            self._kill(slot)
        if self._started:
            ray.shutdown()

    def _start(self, slot: _Slot) -> None:
        slot.ready, slot.job, slot.began = None, None, time.monotonic()
        slot.actor = self._actor.remote(self._objective, str(Path.cwd()), self.plan.threads)
        slot.events = slot.actor.prepare.remote(self._needs)

    def _take(self, slot: _Slot) -> Outcome | Screened | None:
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
            return self._lost(slot, _first_sentence(error))
        job = slot.job
        if isinstance(event, Stage):
            self._listener.stage(event.what, event.done, event.total)
        elif isinstance(event, Ready):
            slot.ready, slot.events, slot.starts = event, None, 0
        elif isinstance(event, Step) and job is not None:
            self._listener.step(job.number, event)
        elif isinstance(event, AtRung) and isinstance(job, Proposal):
            slot.actor.answer.remote(self._listener.at_rung(job, event.step, event.error))
        elif isinstance(event, Outcome | Screened):
            slot.job, slot.events = None, None
            return event
        return None

    def _lost(self, slot: _Slot, why: str) -> Outcome | None:
        """Replace a worker, and say how the job that it had ended; None where it had none."""
        where = f"pid {slot.ready.pid} on {slot.ready.host}" if slot.ready else "before it was ready"
        reason, job, last = f"its worker was lost ({where}): {why}", slot.job, _last_lines(slot.ready)
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
                stack = ray.get(slot.actor.stack.remote(), timeout=_STACK_SECONDS)
            job, folder = slot.job, slot.folder
            slot.job = None
            self._kill(slot)
            self._start(slot)
            reason = f"it hung: not done after {seconds:.0f} s, the limit is {self.limit:.0f} s"
            yield Outcome(number=job.number, score=None, reason=reason + keep_stderr(folder, f"{reason}\n{stack}"), lost=True)

    def _kill(self, slot: _Slot) -> None:
        if slot.actor is not None:
            with suppress(RayError):
                ray.kill(slot.actor, no_restart=True)
        slot.actor = slot.events = slot.ready = None


def connect(config: MachineConfig) -> Plan:
    """Start Ray on this machine, or join a cluster, or take the one that this process is in already.

    Raises:
        RunError: it cannot be started or reached.
        ConfigError: more was asked for than there is.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if config.ray_address is None and not ray.is_initialized():
        there = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
        plan = plan_workers(config, there)
        # CPUs here are a name for room: a search of more workers than cores is slow, not refused.
        cpus = max(int(there["CPU"]), plan.workers * plan.processes)
        _init(num_cpus=cpus, num_gpus=int(there["GPU"]), object_store_memory=_OBJECT_STORE, include_dashboard=False)
        return plan
    if not ray.is_initialized():
        _init(address=config.ray_address)
    return plan_workers(config, ray.cluster_resources())  # type: ignore[no-untyped-call]


def _init(**options: Any) -> None:
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (RayError, ConnectionError, OSError, RuntimeError, ValueError) as error:
        where = f"the cluster at {options['address']} cannot be reached" if "address" in options else "Ray cannot be started"
        raise RunError(f"{where}: {' '.join(str(error).split())[:300]}") from error


def _resources(plan: Plan) -> dict[str, Any]:
    """A second thread answers at rungs while the first one runs a job. A worker that is lost is replaced here, not by Ray."""
    return {
        "num_cpus": 1,
        "num_gpus": plan.gpus,
        "max_concurrency": 2,
        "max_restarts": 0,
        "max_task_retries": 0,
        "scheduling_strategy": "SPREAD",
        "runtime_env": {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(plan.threads)}},
    }


def _first_sentence(error: BaseException) -> str:
    """What Ray says, without its guesses at the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = (lines or [type(error).__name__])[-1].rpartition("Worker exit detail: ")[2]
    return text.partition(" Some common causes")[0][:300]


def _last_lines(ready: Ready | None) -> str:
    """What a worker wrote to stderr last; nothing where it ran on another host."""
    if ready is None or not Path(ready.stderr).is_file():
        return ""
    return "\n".join(Path(ready.stderr).read_text(errors="replace").splitlines()[-_LAST_LINES:])
