"""What is done about trials that end without a score: tried again, recorded as failed, or the end of the search."""

import re
from collections import Counter

from search.trial import Outcome, Trial
from spaces.errors import RunError

_RETRIES = 2
_SAME = 3


class Faults:
    """Counts, over one launch, how trials failed."""

    def __init__(self) -> None:
        self._retries: Counter[int] = Counter()
        self._causes: list[str] = []

    def again(self, outcome: Outcome) -> bool:
        """Whether the job should be tried on another worker: twice where its worker was lost."""
        if not outcome.lost or self._retries[outcome.number] == _RETRIES:
            return False
        self._retries[outcome.number] += 1
        return True

    def ended(self, trial: Trial) -> None:
        """Take note of how a trial ended.

        Raises:
            RunError: the last three failed for the same cause.
        """
        if trial.score is not None:
            self._causes.clear()
            return
        self._causes = [*self._causes, cause_of(trial.reason or "")][-_SAME:]
        if len(self._causes) == _SAME and len(set(self._causes)) == 1:
            raise RunError(
                f"stopped: {_SAME} trials in a row failed for the same cause, the last one with: {trial.reason} "
                f"(see stderr.log of trial {trial.proposal.number}). Put it right, and the same command continues the run"
            )


def cause_of(reason: str) -> str:
    """A reason without what differs from trial to trial: its numbers, and what hexadecimal names contain."""
    return re.sub(r"0x[0-9a-f]+|[0-9]+(\.[0-9]+)?", "#", reason)
