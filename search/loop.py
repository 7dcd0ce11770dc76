"""The loop of a search: ask, run, tell, until there are enough trials. The only one who asks and tells the study."""

from collections.abc import Callable, Sequence

from search.faults import Faults
from search.job import Job, Outcome, Screened
from search.runner import Runner
from search.study import Study
from search.trial import Proposal, Trial


class Loop:
    """Keeps a runner's workers busy with the trials of a study.

    Args:
        study: asked and told.
        runner: prepared.
        wanted: trials in the study when the loop ends, unless it is stopped or nothing new is left to propose.
        stopping: whether no further job should be begun.
        started: called before a trial is run.
        ended: called when the study has been told.
        waiting: called when every worker has work, before more is waited for; about once a second at least, where the runner
            returns that often.
        notice: told what a person should know.
    """

    def __init__(
        self,
        study: Study,
        runner: Runner,
        wanted: int,
        stopping: Callable[[], bool],
        started: Callable[[Proposal], None],
        ended: Callable[[Trial], None],
        waiting: Callable[[], None],
        notice: Callable[[str], None],
    ) -> None:
        self._study, self._runner, self._wanted = study, runner, wanted
        self._stopping, self._started, self._ended, self._waiting = stopping, started, ended, waiting
        self._notice = notice
        self._jobs: dict[int, Job] = {}
        self._again: list[Job] = []
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
            self._waiting()
            if not self._jobs and not self._wanting:
                return
            ended = self._runner.wait()
            if isinstance(ended, Screened):
                self._screened(ended.number, ended.divergences)
            elif ended is not None:
                self._end(ended)

    @property
    def _wanting(self) -> bool:
        """Whether another job should be begun, if there is room for it."""
        if self._stopping():
            return False
        return bool(self._again) or (not self._exhausted and len(self._study.trials) + len(self._jobs) < self._wanted)

    def _fill(self) -> None:
        while self._runner.free > 0 and self._wanting:
            if self._again:
                self._submit(self._again.pop(0))
            else:
                self._take(self._study.ask())

    def _take(self, job: Job | None) -> None:
        self._exhausted = job is None
        if job is not None:
            if isinstance(job, Proposal):
                self._started(job)
            self._submit(job)

    def _submit(self, job: Job) -> None:
        self._jobs[job.number] = job
        self._runner.submit(job, self._study.folder(job.number))

    def _screened(self, number: int, divergences: Sequence[float]) -> None:
        del self._jobs[number]
        if not self._stopping():  # else its number is proposed again when the run goes on
            self._take(self._study.choose(number, divergences))

    def _end(self, outcome: Outcome) -> None:
        job = self._jobs.pop(outcome.number)
        if self._faults.again(outcome):
            self._notice(f"trial {outcome.number} is run again: {outcome.reason}")
            self._again.append(job)
        elif isinstance(job, Proposal):
            self._ended(self._study.tell(outcome.number, outcome.score, outcome.reason, outcome.allocation))
            self._faults.ended(outcome)
        else:  # screening was lost every time: its candidates are chosen from as if they had not been measured
            self._screened(outcome.number, [float("nan")] * len(job.candidates))
