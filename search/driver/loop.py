"""The loop of a search: ask, run, tell, until there are enough trials. The only one who asks and tells the study."""

from collections.abc import Callable, Sequence

from search.driver.failure_policy import Faults
from search.driver.observer import Observer
from search.runners.base import Runner
from search.study.study import Study
from search.trial import Ended, Job, Outcome, Proposal, Screened, Screening


class Loop:
    """Keeps a runner's workers busy with the trials of a study.

    Args:
        study: asked and told.
        runner: prepared.
        wanted: trials in the study when the loop ends, unless it is stopped, has settled, or nothing new is left to propose.
        stopping: whether no further job should be begun.
        observer: told of trials that start and end, of jobs that are run again, and when the loop waits.
    """

    def __init__(
        self,
        study: Study,
        runner: Runner,
        wanted: int,
        stopping: Callable[[], bool],
        observer: Observer,
    ) -> None:
        self._study, self._runner, self._wanted = study, runner, wanted
        self._stopping, self._observer = stopping, observer
        self._jobs: dict[int, Job] = {}
        self._waiting: list[Job] = []  # for a worker
        self._faults = Faults()
        self._exhausted = False

    def run(self) -> None:
        """Run trials.

        Raises:
            RunError: the same cause has failed three trials in a row.
            CompressionError: what concerns every trial.
        """
        while True:
            self._fill()
            self._observer.waiting()
            if not self._jobs and not self._wanting:
                return
            ended = self._runner.wait()
            if ended is not None:
                self._end(self._jobs.pop(ended.number), ended)

    @property
    def _wanting(self) -> bool:
        """Whether another job should be begun, if there is room for it."""
        if self._stopping():
            return False
        if self._waiting or self._exhausted:
            return bool(self._waiting)
        return len(self._study.trials) + len(self._jobs) < self._study.wanted(self._wanted)

    def _fill(self) -> None:
        while self._runner.free > 0 and self._wanting:
            if not self._waiting:
                self._take(self._study.ask())
            if self._waiting:
                self._submit(self._waiting.pop(0))

    def _submit(self, job: Job) -> None:
        self._jobs[job.number] = job
        self._runner.submit(job, self._study.folder(job.number))

    def _take(self, job: Job | None) -> None:
        self._exhausted = job is None
        if job is not None:
            self._waiting.append(job)
        if isinstance(job, Proposal):
            self._observer.started(job)

    def _end(self, job: Job, ended: Ended) -> None:
        if isinstance(ended, Screened):
            self._choose(ended.number, ended.divergences)
        elif isinstance(ended, Outcome) and self._faults.again(ended):
            what = "trial" if isinstance(job, Proposal) else "the screening for trial"
            self._observer.notice(f"{what} {ended.number} is run again: {ended.reason}")
            self._waiting.append(job)
        elif isinstance(ended, Outcome) and isinstance(job, Proposal):
            trial = self._study.tell(ended)
            self._observer.ended(trial)
            self._faults.ended(trial)
        elif isinstance(job, Screening):  # lost every time: its candidates are chosen from as if they had not been measured
            self._choose(ended.number, [float("nan")] * len(job.candidates))

    def _choose(self, number: int, divergences: Sequence[float]) -> None:
        if not self._stopping():  # else its number is proposed again when the run goes on
            self._take(self._study.choose(number, divergences))
