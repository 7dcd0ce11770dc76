"""Trials on Ray Tune, for those whose infrastructure is Tune: their dashboards, loggers and resources; our search.

Tune runs in a thread and is given jobs as they are submitted; the study is told in the caller's thread, as by every runner.
Nothing that Tune writes is needed to continue a search. Its results, for TensorBoard and the like, lie in RUN/tune, in a
folder for every launch.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from objectives.evaluator import Evaluator
from objectives.forecast import Forecast
from objectives.objective import Objective
from objectives.runtime.progress import Step
from search.runners.base import Listener
from search.runners.job import Need, keep_stderr, run_job
from search.runners.ray_cluster import Connection, check_alive, first_sentence, last_lines
from search.runners.resources import MachineConfig, Plan
from search.runners.tune_channel import Exchange
from search.runners.tune_trainable import EVENT, Trainable
from search.runners.worker import AtRung, Measured, Ready, Stage
from search.trial import Ended, Job, Outcome, Probe, Probed, Proposal, Screened, Screening
from spaces.allocation import Allocation
from spaces.errors import CompressionError, RunError

RESULTS = "tune"  # folder of the run directory
_NO_TRIAL = -1  # number of what Tune runs besides the trials of the search
_STARTS = 3  # of the first worker
_SYNC_SECONDS = 10  # between two copies of Tune's results into the run directory
_CLOSING_SECONDS = 20.0


@dataclass(frozen=True)
class _Started:
    """A trial of Tune has a process, which may have run others before."""

    actor: Any


@dataclass(frozen=True)
class _Lost:
    """A trial of Tune ended with what Ray says."""

    text: str


@dataclass(frozen=True)
class _Crash:
    """Tune itself ended."""

    error: Exception


class _Ended(Exception):  # noqa: N818
    """Raised within Tune to end it at once."""


class _Jobs(Searcher):
    """Suggests what was submitted; Tune knows nothing of the sampler."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self._exchange = exchange

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        config = self._exchange.next()
        return Searcher.FINISHED if self._exchange.closed else config  # type: ignore[return-value]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The caller was told the result before."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the truth."""


class _Events(tune.Callback):
    """Tells the caller what happens to trials. The first of all callbacks: loggers get what is left of a result."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if self._exchange.aborted:
            raise _Ended

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._exchange.tell(trial.config["number"], _Started(trial.temporary_state.ray_actor))

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any) -> None:
        number, event = trial.config["number"], result.pop(EVENT)
        if isinstance(event, AtRung):  # the answer is there before Tune asks for the next step
            actor: Any = trial.temporary_state.ray_actor
            actor.answer.remote(self._exchange.ask(number, event))
        else:
            self._exchange.tell(number, event)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._exchange.tell(trial.config["number"], _Lost(first_sentence(RuntimeError(Path(trial.error_file).read_text()))))


@dataclass
class _Running:
    """A job that Tune was given.

    Attributes:
        job, folder: what it is; None for what is no trial of the search.
        actor: its process; None while it has none.
        began: when that took it, or was ready for it, by the monotonic clock; None before.
        hung: why the process was ended.
    """

    job: Proposal | None = None
    folder: Path = field(default_factory=Path)
    actor: Any = None
    began: float | None = None
    hung: str | None = None


class TuneRunner:
    """Implements `search.runners.base.Runner` with Ray Tune.

    Candidates are screened by this process, when they are submitted: what Tune runs are trials. A trial that Tune has no
    process for waits without a limit.

    Args:
        objective: what to evaluate by; its factors lie in the run directory.
        evaluator: of this process, for screening.
        config: which machines.
        listener: what to tell.

    Raises:
        RunError: Ray cannot be started, or the cluster cannot be reached.
        ConfigError: more was asked for than there is.
    """

    def __init__(self, objective: Objective, evaluator: Evaluator, config: MachineConfig, listener: Listener) -> None:
        self.limit: float | None = None
        self._evaluator, self._listener = evaluator, listener
        listener.stage("workers", 0, 1)
        self.connection = Connection(config)
        self.plan = self.connection.plan
        self._objective = replace(objective, device=self.plan.device)
        self._exchange = Exchange()
        self._running: dict[int, _Running] = {}
        self._done: deque[Screened | Probed] = deque()  # in this process
        self._ready: dict[Any, Ready] = {}  # actor -> what it said
        self._thread: threading.Thread | None = None

    @property
    def free(self) -> int:
        return self.plan.workers - len(self._running) - len(self._done)

    @property
    def workers(self) -> int:
        return self.plan.workers

    @property
    def devices(self) -> list[str]:
        return [ready.device for ready in self._ready.values()]

    def prepare(self, needs: Sequence[Need]) -> None:
        tuner = _tuner(self._objective, self.plan, needs, self._exchange)
        self._thread = threading.Thread(target=_fit, args=(tuner, self._exchange), daemon=True)
        self._thread.start()
        for _ in range(_STARTS):
            lost = self._call({})
            if lost is None:
                return
        raise RunError(f"a worker cannot be prepared: {lost.text}")

    def forecast(self, allocation: Allocation) -> Forecast:
        found = self._call({"allocation": dict(allocation)})
        if isinstance(found, _Lost):
            raise RunError(f"no trial could be timed: {found.text}")
        return found  # type: ignore[no-any-return]

    def submit(self, job: Job, folder: Path) -> None:
        if isinstance(job, Screening | Probe):
            done = run_job(self._evaluator, job, folder, lambda step: None, self._listener.at_rung)
            assert isinstance(done, Screened | Probed)
            self._done.append(done)
            return
        self._running[job.number] = _Running(job, folder.absolute())
        sent = replace(job, parameters={}, attributes={})  # the sampler's notes stay here
        self._exchange.put({"number": job.number, "folder": str(folder.absolute()), "proposal": sent.to_dict()})

    def wait(self, timeout: float = 1.0) -> Ended | None:
        if self._done:
            return self._done.popleft()
        self._end_hung()
        ended = self._take(timeout)
        if ended is None:
            return None
        running, event = ended
        return self._lost(running, event) if isinstance(event, _Lost) else event

    def close(self) -> None:
        self._exchange.close(abort=bool(self._running))
        for running in self._running.values():
            _kill(running.actor)
        self._running.clear()
        if self._thread is not None:
            self._thread.join(_CLOSING_SECONDS)
        self.connection.close()

    def _call(self, config: dict[str, Any]) -> Any:
        """Have Tune run what is no trial of the search: its last event."""
        self._running[_NO_TRIAL] = _Running()
        self._exchange.put({"number": _NO_TRIAL, **config})
        while True:
            ended = self._take(1.0)
            if ended is not None:
                return ended[1]

    def _take(self, timeout: float) -> tuple[_Running, Any] | None:
        """The next event, if there is one: shown, answered, or returned where it is a job's last."""
        told = self._exchange.take(timeout)
        if told is None:
            if all(running.began is None for running in self._running.values()):
                check_alive()
            return None
        number, event = told
        if isinstance(event, _Crash):
            raise RunError(f"Ray Tune ended: {type(event.error).__name__}: {first_sentence(event.error)}") from event.error
        if not self._show(self._running[number], event):
            return None
        running = self._running.pop(number)
        if isinstance(event, CompressionError):
            raise event
        return running, event

    def _show(self, running: _Running, event: Any) -> bool:
        """Tell the listener of an event; whether it is a job's last."""
        if isinstance(event, _Started):
            if not self._ready:
                self._listener.stage("workers", 1, 1)
            running.actor = event.actor
            running.began = time.monotonic() if event.actor in self._ready else None
        elif isinstance(event, Stage):
            if not self._ready:  # what later workers prepare, others need not wait for
                self._listener.stage(event.what, event.done, event.total)
        elif isinstance(event, Measured):
            self._listener.measured()
        elif isinstance(event, Ready):
            self._ready[running.actor], running.began = event, time.monotonic()
        elif isinstance(event, Step) and running.job is not None:
            self._listener.step(running.job.number, event)
        elif isinstance(event, AtRung) and running.job is not None:
            self._exchange.answer(self._listener.at_rung(running.job, event.step, event.error))
        else:
            return True
        return False

    def _lost(self, running: _Running, lost: _Lost) -> Outcome:
        ready = self._ready.pop(running.actor, None)
        where = f"pid {ready.pid} on {ready.host}" if ready else "before it was ready"
        reason = running.hung or f"its worker was lost ({where}): {lost.text}"
        assert running.job is not None
        last = last_lines(ready.stderr) if ready else ""
        kept = keep_stderr(running.folder, f"{reason}\n{last}")
        return Outcome(number=running.job.number, score=None, reason=reason + kept, lost=True)

    def _end_hung(self) -> None:
        """End the processes of trials beyond the limit; Tune says when they are gone."""
        for running in self._running.values():
            seconds = 0.0 if running.began is None else time.monotonic() - running.began
            if self.limit is not None and running.hung is None and seconds > self.limit:
                running.hung = f"it hung: not done after {seconds:.0f} s, the limit is {self.limit:.0f} s"
                _kill(running.actor)


def _tuner(objective: Objective, plan: Plan, needs: Sequence[Need], exchange: Exchange) -> tune.Tuner:
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints tables even at verbose=0
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what ends a trial is told, and shown by who is told
    given = {"objective": objective, "directory": str(Path.cwd()), "threads": plan.threads, "needs": needs}
    resources = {"cpu": 1.0} | ({"gpu": plan.gpus} if plan.gpus else {})
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(Trainable, **given), resources),
        tune_config=tune.TuneConfig(
            search_alg=_Jobs(exchange),
            max_concurrent_trials=plan.workers,
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y-%m-%d_%H-%M-%S"),
            storage_path=str(objective.factors.parent.absolute() / RESULTS),
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            sync_config=tune.SyncConfig(sync_period=_SYNC_SECONDS),
            callbacks=[_Events(exchange)],
            verbose=0,
        ),
    )


def _fit(tuner: tune.Tuner, exchange: Exchange) -> None:
    """The body of Tune's thread."""
    try:
        tuner.fit()
        raise RuntimeError("it took no further trial")
    except Exception as error:
        if not exchange.closed:
            exchange.tell(_NO_TRIAL, _Crash(error))


def _name(trial: Trial) -> str:
    number = trial.config["number"]
    return f"{'preparation' if number == _NO_TRIAL else format(number, '04d')}_{trial.trial_id}"


def _kill(actor: Any) -> None:
    if actor is not None:
        with suppress(RayError):
            ray.kill(actor, no_restart=True)
