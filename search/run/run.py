"""A run directory as a value: what it holds, what is best in it, and whether a configuration belongs to it."""

from functools import cached_property
from pathlib import Path

from objectives.profile import Profile, profile_name
from objectives.training.config import FinetuneConfig
from objectives.training.rate import RATE, settled
from search.budgets.targets import Budget, Target, parse_target
from search.config import SearchConfig
from search.evidence.file import read_evidence
from search.evidence.options import Preference
from search.evidence.pick import Pick
from search.evidence.posterior import Evidence
from search.layout import STDERR
from search.run.activity import RunningTrial, running_of
from search.run.audit_file import Audit, read_audit
from search.run.finished_trial import FinishedTrial, pick_within
from search.run.options import stored_config
from search.run.places import check_run
from search.run.tables import read_tables
from search.run.trial_table import trials_of
from spaces.errors import RunError, TargetError
from spaces.sites import Space

_STDERR = 4000  # characters


class Run:
    """A search's results, read from its tables; safe while a search writes them.

    Attributes:
        directory: the run directory.
        trials: a pandas table, a row per trial that has ended.
        summary: what the run came to.

    Raises:
        RunError: there is no run.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.trials, self.summary = read_tables(self.directory)

    @cached_property
    def config(self) -> SearchConfig:
        """The options that the run was launched with."""
        return stored_config(self.directory)

    @cached_property
    def finetune(self) -> FinetuneConfig:
        """How its trials were fine-tuned: at the learning rate that was given or probed.

        Raises:
            RunError: that rate is missing, or cannot be read.
        """
        finetune = settled(self.config.finetune, self.directory)
        if finetune.is_probed:
            raise RunError(f"{self.directory / RATE}, the learning rate of the run, is missing: restore it from a backup")
        return finetune

    @cached_property
    def space(self) -> Space:
        """The space that was searched."""
        return self.summary.spaces[self.summary.space]

    @cached_property
    def profile(self) -> Profile | None:
        """The sensitivity profile, where it was measured: by `inspect --profile` or for a search that starts from it."""
        fingerprint = self.summary.fingerprint
        path = self.directory / "factors" / profile_name(fingerprint)
        return Profile.load(path, fingerprint, self.space) if path.exists() else None

    @cached_property
    def ended(self) -> tuple[FinishedTrial, ...]:
        """The rows of `trials` as values."""
        return trials_of(self.trials, self.summary)

    @property
    def complete(self) -> tuple[FinishedTrial, ...]:
        """The trials that finished: neither stopped at a rung nor failed."""
        return tuple(trial for trial in self.ended if trial.is_complete)

    @property
    def front(self) -> tuple[FinishedTrial, ...]:
        """The trials on the front, in ascending order of the first cost among the objectives."""
        trials = {trial.number: trial for trial in self.ended}
        return tuple(trials[point.number] for point in self.summary.front)

    @property
    def audit(self) -> Audit | None:
        """What `search.fidelity.audit.audit` found last; None before there was one.

        Raises:
            RunError: it cannot be read.
        """
        return read_audit(self.directory)

    @property
    def running(self) -> tuple[RunningTrial, ...]:
        """The trials that a launch has running now."""
        return running_of(self.directory)

    def stderr(self, number: int) -> str:
        """The last lines that a trial left where it failed; '' where it left none."""
        path = self.directory / "trials" / f"{number:04d}" / STDERR
        try:
            return path.read_text(encoding="utf-8", errors="replace")[-_STDERR:]
        except OSError:
            return ""

    def budget(self, target: str | Target) -> Budget:
        """What a target comes to for this run's model.

        Raises:
            TargetError: malformed, or outside what the space reaches.
        """
        parsed = parse_target(target) if isinstance(target, str) else target
        return parsed.resolve(self.summary.reach)

    @cached_property
    def evidence(self) -> Evidence:
        """What the search split tells of the trials' errors.

        Raises:
            RunError: it cannot be read.
        """
        return read_evidence(self.directory)

    def best(self, target: str | Target | Budget, prefer: Preference | None = None) -> FinishedTrial:
        """The best finished trial under a target; `pick` tells what cannot be told apart from it."""
        return self.trial(self.pick(target, prefer).number)

    def pick(self, target: str | Target | Budget, prefer: Preference | None = None) -> Pick:
        """The finished trial of the least expected error under a target, and those that cannot be told apart from it.

        Args:
            target: as it was searched, or another.
            prefer: what decides among those; by default what the search was launched with.

        Raises:
            TargetError: no finished trial keeps the target; the message names the nearest one.
            RunError: no trial finished.
        """
        budget = target if isinstance(target, Budget) else self.budget(target)
        complete = self.complete
        if not complete:
            raise RunError(f"no trial of {self.directory} has finished")
        found = pick_within(complete, budget.limits, self.evidence, prefer or self.summary.prefer)
        if found is None:
            nearest = min(complete, key=lambda trial: trial.load(budget.limits))
            figures = [spec.format_with_unit(nearest.costs[spec.name]) for spec in self.summary.costs]
            raise TargetError(
                f"no trial of {self.directory} keeps {budget.target.text}: the nearest is trial {nearest.number} with "
                f"{' and '.join(figures)}; search again with --target {budget.target.text}"
            )
        return found

    def trial(self, number: int) -> FinishedTrial:
        """One finished trial.

        Raises:
            RunError: there is no such trial, it failed, or it was stopped before its end.
        """
        trial = next((trial for trial in self.ended if trial.number == number), None)
        if trial is None:
            raise RunError(f"{self.directory} has no trial {number}: it has {len(self.ended)}, see trials.csv")
        if trial.state == "PRUNED":
            raise RunError(f"trial {number} of {self.directory} was not finished ({trial.reason}): choose one of the front")
        if not trial.is_complete:
            raise RunError(f"trial {number} of {self.directory} failed ({trial.reason})")
        return trial


def open_run(directory: str | Path) -> Run:
    """The run in a directory.

    Raises:
        RunError: there is none.
    """
    check_run(Path(directory))
    return Run(directory)
