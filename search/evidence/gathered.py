"""The evidence of a run, kept up to date with its trials."""

from collections.abc import Sequence
from pathlib import Path

from objectives.outcomes import Outcomes
from search.evidence.posterior import NO_EVIDENCE, Evidence, evidence_of
from search.evidence.sample import DENSE, Sample
from search.layout import outcomes_of
from search.trial import Trial
from spaces.allocation import Allocation
from spaces.errors import CheckpointError


class Gathered:
    """What the trials of a run made of the search split, read from their folders once.

    Args:
        directory: of the run.
        dense: outcomes of the dense model as loaded; None where it has no classes, and nothing can be gathered.
        tested: images of the test split; 0 where that is not known.
    """

    def __init__(self, directory: Path, dense: Outcomes | None, tested: int) -> None:
        self._directory, self._tested, self._sample = directory, tested, Sample()
        self._seen: set[int] = set()
        self._made: tuple[int, Evidence] = (0, NO_EVIDENCE)
        if dense is not None:
            self._sample.add(DENSE, dense)

    def of(self, trials: Sequence[Trial]) -> Evidence:
        """The evidence of trials, those that finished; one whose file is missing or damaged is not part of it.

        Args:
            trials: of the run; always those of the time before, and maybe others.
        """
        for trial in trials:
            number = trial.proposal.number
            if trial.state == "COMPLETE" and number not in self._seen:
                self._seen.add(number)
                self._read(number)
        if self._made[0] != len(trials):
            kept = {trial.proposal.number: _built(trial) for trial in trials if trial.state == "COMPLETE"}
            self._made = len(trials), evidence_of(self._sample, kept, self._tested)
        return self._made[1]

    def _read(self, number: int) -> None:
        try:
            outcomes = Outcomes.load(outcomes_of(self._directory, number))
        except CheckpointError:
            return
        self._sample.add(number, outcomes)


def _built(trial: Trial) -> tuple[Allocation | None, str | None]:
    """What fine-tunes of one candidate have in common."""
    return trial.proposal.allocation, trial.proposal.recipe
