"""What is shown of a run: its tables, its report and the weights of its front, kept up to date with the study.

All of it can be made again from the journal, so it may lag behind: with many workers trials end faster than tables of
thousands of rows are worth writing.
"""

import time
from collections.abc import Sequence

from search.driver.observer import Observer
from search.report.write import render
from search.run.finished_trial import FinishedTrial, finished_trials, with_evidence
from search.run.run import Run
from search.run.summary import RunSummary, summarise
from search.run.tables import RunTables
from search.run.weights import keep_weights
from search.study.study import Study
from search.trial import DENSE, Proposal, Trial

_SHARE = 0.1  # of the driver's time that tables may take
_REPORT_SECONDS = 20.0


class Publisher(Observer):
    """Publishes one study.

    Args:
        study: to show.
        facts: the run's summary without its trials.
        disk_limit: GB of weights that are kept.
        observer: told of every trial that tables show for the first time.
        at_once: whether tables are written after every trial, however much time that takes.

    Attributes:
        summary: of the run, when it was written last.
    """

    def __init__(
        self,
        study: Study,
        facts: RunSummary,
        disk_limit: float | None,
        observer: Observer | None = None,
        at_once: bool = False,
    ) -> None:
        self.summary = facts
        self._observer, self._at_once = observer or Observer(), at_once
        self._study = study
        self._bytes = None if disk_limit is None else disk_limit * 1e9
        self._new: list[Trial] = []
        self._finished: dict[int, FinishedTrial] = {}  # of the study's trials as many as tables show
        self._tables = RunTables(study.directory)
        self._weighed = {trial.proposal.number for trial in study.trials}  # whose weights may be there
        self._due = self._reported = 0.0
        self._has_begun = False

    def started(self, proposal: Proposal) -> None:
        self._has_begun = True

    def ended(self, trial: Trial) -> None:
        self._new.append(trial)

    def waiting(self) -> None:
        """Show the trials that have ended, unless tables were written so lately that it would take too much time."""
        if self._at_once or time.monotonic() >= self._due:
            self.update()

    def finish(self) -> None:
        """Show all that ended, in the report too, unless no trial has begun since it was written."""
        self.update()
        if self._has_begun:
            self.write_report()

    def update(self) -> None:
        """Show the trials that have ended, and tell of them."""
        if not self._new:
            return
        began = time.monotonic()
        shown, self._new = self._new, []
        self.write_tables()
        self._keep_weights(shown)
        now = time.monotonic()
        self._due = now + (now - began) * (1 / _SHARE - 1)
        if now - self._reported > _REPORT_SECONDS:
            self.write_report()
        for count, trial in enumerate(shown, start=len(self._study.trials) - len(shown) + 1):
            self._observer.finished(trial, self.summary, count)

    def write(self) -> None:
        """Bring everything up to date with the journal: a launch that was killed may not have come to it."""
        self.write_tables()
        self._keep_weights(())
        self.write_report()

    def write_tables(self) -> None:
        """Write trials.csv, pareto.csv and pareto.json."""
        new = self._study.trials[len(self._finished) :]
        self._finished |= {trial.number: trial for trial in finished_trials(new, self.summary.dense.costs)}
        trials = sorted(self._finished.values(), key=lambda trial: trial.number)
        evidence = self._study.evidence
        shown = with_evidence(trials, evidence)
        self.summary = summarise(self.summary, shown, evidence, self._study.worth)
        self._tables.write(shown, self.summary, evidence)

    def write_report(self) -> None:
        """Write report.html, pareto.png and pareto.svg from the tables."""
        render(Run(self._study.directory))
        self._reported = time.monotonic()

    def _keep_weights(self, shown: Sequence[Trial]) -> None:
        """Those of the best under every target, and of the front from its most accurate trial on.

        Not of the dense reference: they are as large as the dense model, and seldom wanted.
        """
        points = [point for point in self.summary.front if point.label != DENSE]
        front = [point.number for point in sorted(points, key=lambda point: point.best_guess)]
        kept = list(dict.fromkeys([*(number for number in self.summary.best if number in front), *front]))
        self._weighed |= {trial.proposal.number for trial in shown}
        keep_weights(self._study.directory, sorted(self._weighed), kept, self._bytes)
        self._weighed.intersection_update(kept)
