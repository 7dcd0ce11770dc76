"""What a further trial is worth, beside how well the front is known, and whether a search has settled."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from search.evidence.pick import Candidate
from search.evidence.posterior import Evidence
from search.pareto import staircase
from search.trial import Proposal

# A further trial is worth too little where it is expected to lower the front by less than this share of what is uncertain
# about the front's level, for so many proposals in a row of every target: benchmarks/results/ending_cpu_202611.md.
SMALL, PATIENCE = 0.05, 3


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What a further trial is worth.

    Attributes:
        gain: by how much it is expected to lower the front, as an error averaged over the band of its target: of the last
            proposals, one for each target, the largest.
        known_to: standard deviation of the front's level over that band, against the dense reference.
        settled: whether `gain` has been small beside `known_to` for long enough.
    """

    gain: float
    known_to: float
    settled: bool = False


def known_to(candidates: Sequence[Candidate], evidence: Evidence, low: float, reference: int | None = None) -> float | None:
    """Standard deviation of the mean level of a front, over the loads from `low` to 1; None where nothing is known of it.

    The front is a staircase: from the load of each of its trials to that of the next one it is as high as the trial's error.

    Args:
        candidates: trials within the budget.
        evidence: of the run.
        low: of the band.
        reference: number of the trial that levels are compared with; without one the level itself is taken.
    """
    known = [entry for entry in candidates if entry.number in evidence]
    if not known:
        return None
    loads = np.array([entry.load for entry in known])
    rows = staircase(loads, np.array([evidence.mean(entry.number) for entry in known]))
    edges = np.clip(np.append(loads[rows], 1.0), low, 1.0)
    widths = np.diff(edges)
    if widths.sum() <= 0:  # all of it is at the upper end
        rows, widths = rows[-1:], np.ones(1)
    numbers, weights = [known[row].number for row in rows], widths / widths.sum()
    if reference is not None and reference in evidence:
        numbers, weights = [*numbers, reference], np.append(weights, -1.0)
    _, covariance = evidence.of(numbers)
    return float(np.sqrt(max(weights @ covariance @ weights, 0.0)))


def settled_after(proposals: Iterable[Proposal], targets: int) -> int | None:
    """Number of the trial with which a search settled, by the proposals of its sampler; None where it has not.

    Args:
        proposals: of the search, in any order.
        targets: budgets that are searched in turn.
    """
    small = 0
    for entry in _of_sampler(proposals):
        is_small = entry.gain is not None and entry.known_to is not None and entry.gain < SMALL * entry.known_to
        small = small + 1 if is_small else 0
        if small == PATIENCE * targets:
            return entry.number
    return None


def worth_of(proposals: Sequence[Proposal], targets: int) -> Worth | None:
    """What the last proposals say that a further trial is worth; None where they say nothing.

    Args:
        proposals, targets: as of `settled_after`.
    """
    last = _of_sampler(proposals)[-targets:]
    known = [(entry.gain, entry.known_to) for entry in last if entry.gain is not None and entry.known_to is not None]
    if not known:
        return None
    gain, spread = max(known)
    return Worth(gain=gain, known_to=spread, settled=settled_after(proposals, targets) is not None)


def _of_sampler(proposals: Iterable[Proposal]) -> list[Proposal]:
    return sorted((entry for entry in proposals if entry.label is None), key=lambda entry: entry.number)
