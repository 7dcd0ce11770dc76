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
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from objectives.finetune import Step
from objectives.forecast import Forecast
from objectives.objective import Objective
from objectives.parallel import free_port
from search.job import Job, Outcome, Screened, keep_stderr
from search.machines import MachineConfig, Plan, plan_workers
from search.runner import Listener, Need
from search.trial import Proposal
from search.worker import AtRung, Ready, Stage, Worker
from spaces.allocation import Allocation
from spaces.errors import CompressionError, DivergedError, RunError

_STACK_SECONDS = 3.0
_PARTNER_SECONDS = 10.0  # for the other processes of a group to end a job that the first one has ended
_LAST_LINES = 60
_STARTS = 3  # of one worker that never got ready
_OBJECT_STORE = 128 << 20  # what passes through it are events: some hundred bytes each


@dataclass
class _Slot:
    """Room for one worker, and what is in it. A worker is one process, or a group of them whose first one leads.

    Attributes:
        actors: the processes; new ones after a loss.
        events: of the first one's preparation or job, until the last was taken.
        others: calls of the other processes that have not returned.
        joined: whether its processes are a group.
        bundles: where its processes have their place; None for a single process.
        ready: what the worker said when it was prepared; None before.
        job, folder: what it runs.
        began: when its preparation or its job did, by the monotonic clock.
        starts: workers in a row that did not get ready here.
    """

    actors: list[Any] = field(default_factory=list)
    events: Any = None
    others: list[Any] = field(default_factory=list)
    joined: bool = False
    bundles: PlacementGroup | None = None
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

    Raises:
        RunError: Ray cannot be started, or the cluster cannot be reached.
        ConfigError: more was asked for than there is.
    """

    def __init__(self, objective: Objective, config: MachineConfig, listener: Listener) -> None:
        self.limit: float | None = None
        self._listener = listener
        self._started = not ray.is_initialized()
        self.plan = connect(config)
        self._objective = replace(objective, device=self.plan.device)
        self._actor = ray.remote(Worker)
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
        return ray.get(self._slots[0].actors[0].forecast.remote(allocation))  # type: ignore[no-any-return]

    def submit(self, job: Job, folder: Path) -> None:
        slot = next(slot for slot in self._slots if slot.idle)
        slot.job, slot.folder, slot.began = job, folder.absolute(), time.monotonic()
        sent = replace(job, attributes={}) if isinstance(job, Proposal) else job  # the sampler's notes stay here
        slot.events = slot.actors[0].run.remote(sent, slot.folder)
        if isinstance(sent, Proposal) and sent.recipe is None:  # recipes and screening are for one process
            slot.others = [actor.follow.remote(sent) for actor in slot.actors[1:]]

    def wait(self, timeout: float = 1.0) -> Outcome | Screened | None:
        waited = {call: slot for slot in self._slots for call in (slot.events, *slot.others) if call is not None}
        if not waited:
            time.sleep(timeout)
            return None
        found, _ = ray.wait(list(waited), num_returns=1, timeout=timeout, fetch_local=False)
        if found:
            slot = waited[found[0]]
            return self._take(slot) if found[0] is slot.events else self._partner(slot, found[0])
        return next(self._hung(), None)

    def close(self) -> None:
        for slot in self._slots:
            self._kill(slot)
        if self._started:
            ray.shutdown()

    def _start(self, slot: _Slot) -> None:
        slot.ready, slot.job, slot.began = None, None, time.monotonic()
        resources = _resources(self.plan)
        if self.plan.processes > 1:
            bundle = {"CPU": resources["num_cpus"], "GPU": resources["num_gpus"]}
            slot.bundles = placement_group([bundle] * self.plan.processes, strategy="PACK")
        for index in range(self.plan.processes):
            place = "SPREAD" if slot.bundles is None else PlacementGroupSchedulingStrategy(slot.bundles, index)
            options = {**resources, "scheduling_strategy": place}
            slot.actors.append(
                self._actor.options(**options).remote(self._objective, str(Path.cwd()), self.plan.threads, self.plan.processes)
            )
        slot.events = slot.actors[0].prepare.remote(self._needs)

    def _join(self, slot: _Slot) -> None:
        """Make a group of a worker's processes; what is computed once per run lies in the factors' folder by now."""
        first, *others = slot.actors
        address, port = ray.get(first.__ray_call__.remote(lambda worker: (ray.util.get_node_ip_address(), free_port())))  # type: ignore[no-untyped-call]
        size = len(slot.actors)
        slot.others = [
            actor.join_silently.remote(self._needs, rank, size, address, port) for rank, actor in enumerate(others, start=1)
        ]
        slot.events, slot.joined = first.join.remote(self._needs, 0, size, address, port), True

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
            slot.events = None
            if len(slot.actors) > 1 and not slot.joined:
                self._join(slot)
            else:
                slot.ready, slot.starts = event, 0
        elif isinstance(event, Step) and job is not None:
            self._listener.step(job.number, event)
        elif isinstance(event, AtRung) and isinstance(job, Proposal):
            slot.actors[0].answer.remote(self._listener.at_rung(job, event.step, event.error))
        elif isinstance(event, Outcome | Screened):
            slot.job, slot.events = None, None
            self._gather(slot)
            return event
        return None

    def _partner(self, slot: _Slot, call: Any) -> Outcome | None:
        """What another process of a group has to say: that it is done, or lost, and the group with it."""
        slot.others.remove(call)
        try:
            ray.get(call)
        except RayTaskError as error:
            if not isinstance(error.cause, DivergedError):  # that all processes raise, and the first one tells
                return self._lost(slot, f"{type(error.cause).__name__}: {error.cause}")
        except RayError as error:
            return self._lost(slot, _first_sentence(error))
        return None

    def _gather(self, slot: _Slot) -> None:
        """Let the other processes of a group end their part of a job; those that wait for ever are replaced."""
        _, waiting = ray.wait(slot.others, num_returns=len(slot.others), timeout=_PARTNER_SECONDS) if slot.others else ([], [])
        slot.others = []
        if waiting:
            self._kill(slot)
            self._start(slot)

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
                stack = ray.get(slot.actors[0].stack.remote(), timeout=_STACK_SECONDS)
            job, folder = slot.job, slot.folder
            slot.job = None
            self._kill(slot)
            self._start(slot)
            reason = f"it hung: not done after {seconds:.0f} s, the limit is {self.limit:.0f} s"
            yield Outcome(number=job.number, score=None, reason=reason + keep_stderr(folder, f"{reason}\n{stack}"), lost=True)

    def _kill(self, slot: _Slot) -> None:
        for actor in slot.actors:
            with suppress(RayError):
                ray.kill(actor, no_restart=True)
        if slot.bundles is not None:
            with suppress(RayError):
                remove_placement_group(slot.bundles)
        slot.actors, slot.others, slot.joined = [], [], False
        slot.events = slot.ready = slot.bundles = None


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
