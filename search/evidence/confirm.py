"""Which contender for a pick is fine-tuned again with another seed, and whether seeds can tell contenders apart at all.

After Chen, Lin, Yücesan and Chick 2000 ("Simulation budget allocation for further enhancing the efficiency of ordinal
optimization"): the next repeat goes where it takes most off the probability of a wrong pick. Here that is the contender of the
largest product of two things: how probably it is the best, and how much of what is uncertain about its distance from its
rival another seed removes. Of two allocations that distance is normal. Before anything was measured its variance is what
fine-tunes of one allocation have in common, for both of them; what was measured adds their own deviations, which more
fine-tunes average out, and the luck of the images, which they share and which stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from search.evidence.posterior import OF_ALLOCATION, Evidence
from search.evidence.sample import Floats

_DRAWS = 4096
_LEAST_SHARE = 0.2  # of what is uncertain, for another seed to be worth a trial


@dataclass(frozen=True, kw_only=True)
class Contender:
    """An allocation within a budget.

    Attributes:
        number: of its fine-tune of the least expected error, which the evidence knows.
        tunes: how often it was fine-tuned, those that run included; at least 1.
        trains: whether its fine-tune made it better; if not, it was kept as built, and another seed would change nothing.
    """

    number: int
    tunes: int = 1
    trains: bool = True


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """What to do about the contenders under a budget.

    Attributes:
        number: of the contender to repeat; None where none is worth it.
        stuck: whether some cannot be told apart, and more seeds would not change that.
    """

    number: int | None = None
    stuck: bool = False


def to_repeat(contenders: Sequence[Contender], evidence: Evidence) -> Repeat:
    """Which of the allocations within a budget to fine-tune again.

    Args:
        contenders: an entry for each allocation, in any order.
        evidence: of the run, with the luck of its images.
    """
    ordered = sorted(contenders, key=lambda entry: (evidence.mean(entry.number), entry.number))
    tied = [entry for entry in ordered if not evidence.told_apart(entry.number, ordered[0].number)]
    if len(tied) < 2:
        return Repeat()
    rivals = [tied[1], *[tied[0]] * (len(tied) - 1)]
    worth = [_Distance(one, other, evidence) for one, other in zip(tied, rivals, strict=True)]
    chances = chances_of([entry.number for entry in tied], evidence)
    rows = [row for row, found in enumerate(worth) if tied[row].trains and found.removable >= _LEAST_SHARE]
    if not rows:
        return Repeat(stuck=True)
    row = max(rows, key=lambda row: (chances[row] * worth[row].by_one, -tied[row].tunes, -tied[row].number))
    return Repeat(number=tied[row].number)


def chances_of(numbers: Sequence[int], evidence: Evidence) -> Floats:
    """How probably each of some trials has the least error of them, [trials]; from draws that are always the same."""
    means, covariance = evidence.of(numbers)
    values, vectors = np.linalg.eigh(covariance)
    normal = np.random.default_rng(0).standard_normal((_DRAWS, len(numbers)))
    drawn = means + (normal * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    found: Floats = np.bincount(drawn.argmin(1), minlength=len(numbers)) / _DRAWS
    return found


class _Distance:
    """What is uncertain about the errors of two allocations' fine-tunes, one minus the other's."""

    def __init__(self, one: Contender, other: Contender, evidence: Evidence) -> None:
        own, others = (evidence.own_variance(entry.number) if entry.trains else 0.0 for entry in (one, other))
        self._prior = (own + others) * OF_ALLOCATION / (1 - OF_ALLOCATION)
        self._luck = evidence.luck_between(one.number, other.number)
        self._noise = own / one.tunes + others / other.tunes + self._luck
        self._after_one = own / (one.tunes + 1) + others / other.tunes + self._luck

    def _left(self, noise: float) -> float:
        """Variance of the distance that is left where it was measured with this one."""
        together = self._prior + noise
        return self._prior * noise / together if together > 0 else 0.0

    @property
    def by_one(self) -> float:
        """Variance that another fine-tune of the first one removes."""
        return self._left(self._noise) - self._left(self._after_one)

    @property
    def removable(self) -> float:
        """Share of the variance that fine-tunes without end would remove."""
        left = self._left(self._noise)
        return 1 - self._left(self._luck) / left if left > 0 else 0.0
