"""Who watches a search: the events that an observer is told of, and a list of observers as one."""

from collections.abc import Sequence
from pathlib import Path

from objectives.runtime.progress import Step
from search.driver.outlook import Outlook
from search.run.first_answer import FirstAnswer
from search.run.summary import RunSummary
from search.trial import Proposal, Trial


class Observer:
    """Is told of every event of a search, in the thread that runs it, and does nothing.

    Subclasses override the events that they care about. `stage`, `say` and `notice` come at any time; `answered` at most once;
    `began` once; then, of every trial, `started`, `step` and `rung`, `ended` and `finished`; `closed` at the end.
    """

    def stage(self, what: str, done: int, total: int) -> None:
        """A preparation has come so far."""

    def say(self, text: str) -> None:
        """What the search found or decided, for a person to read."""

    def notice(self, text: str) -> None:
        """Something that a person should look at."""

    def answered(self, answer: FirstAnswer) -> None:
        """What budgets cost as built, before any trial."""

    def began(self, directory: Path, summary: RunSummary, outlook: Outlook, steps: int) -> None:
        """All is prepared.

        Args:
            directory: of the run.
            summary: of the run.
            outlook: what the launch will take.
            steps: of every fine-tune.
        """

    def started(self, proposal: Proposal) -> None:
        """A trial begins."""

    def step(self, number: int, step: Step) -> None:
        """A trial took an optimiser step."""

    def rung(self, number: int, step: int, error: float) -> None:
        """A trial was measured at a rung."""

    def ended(self, trial: Trial) -> None:
        """A trial was recorded; tables do not show it yet."""

    def finished(self, trial: Trial, summary: RunSummary, count: int) -> None:
        """Tables show a trial.

        Args:
            trial: one that ended before.
            summary: of the run.
            count: trials that had ended up to this one.
        """

    def waiting(self) -> None:
        """All workers have work: called before the search waits for them, about once a second where the runner allows it."""

    def closed(self) -> None:
        """The launch is over, however it ended."""


class Observers(Observer):
    """Tells several observers of every event, in their order."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = list(observers)

    def add(self, observer: Observer) -> None:
        """Tell this one of all that happens from now on, after the others."""
        self._observers.append(observer)

    def stage(self, what: str, done: int, total: int) -> None:
        for each in self._observers:
            each.stage(what, done, total)

    def say(self, text: str) -> None:
        for each in self._observers:
            each.say(text)

    def notice(self, text: str) -> None:
        for each in self._observers:
            each.notice(text)

    def answered(self, answer: FirstAnswer) -> None:
        for each in self._observers:
            each.answered(answer)

    def began(self, directory: Path, summary: RunSummary, outlook: Outlook, steps: int) -> None:
        for each in self._observers:
            each.began(directory, summary, outlook, steps)

    def started(self, proposal: Proposal) -> None:
        for each in self._observers:
            each.started(proposal)

    def step(self, number: int, step: Step) -> None:
        for each in self._observers:
            each.step(number, step)

    def rung(self, number: int, step: int, error: float) -> None:
        for each in self._observers:
            each.rung(number, step, error)

    def ended(self, trial: Trial) -> None:
        for each in self._observers:
            each.ended(trial)

    def finished(self, trial: Trial, summary: RunSummary, count: int) -> None:
        for each in self._observers:
            each.finished(trial, summary, count)

    def waiting(self) -> None:
        for each in self._observers:
            each.waiting()

    def closed(self) -> None:
        for each in self._observers:
            each.closed()
