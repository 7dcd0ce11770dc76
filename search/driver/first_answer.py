"""The first answer of a run: what budgets cost as built, chosen by the profile and measured before any trial is paid for."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from objectives.cost.spec import Cost
from objectives.dense_model import DenseModel
from search.budgets.knapsack import knapsack_of
from search.budgets.parametrisation import Limits
from search.budgets.predicted import Predicted, predicted
from search.budgets.targets import Reach
from search.config import StudyConfig
from search.driver.feasibility import Feasible
from search.driver.preliminary import run_before
from search.run.first_answer import FirstAnswer, FirstPoint, read_first_answer, write_first_answer
from search.runners.base import Runner
from search.trial import Screened, Screening
from spaces.allocation import Allocation

STAGE = "first answer"
_POINTS = 12  # of each cost
_USUAL = (0.75, 0.5, 0.35, 0.25)  # shares that people ask for
_MOST = 0.9  # the largest share: above it there is little to see
_APART = 1.02  # ratio of two shares between which there is nothing to see
_DIGITS = 4

Told = Callable[[str, int, int], None]


def first_answer(
    directory: Path, study: StudyConfig, dense: DenseModel, feasible: Feasible, runner: Runner, progress: Told
) -> FirstAnswer:
    """The first answer of a run: kept from a launch before, or measured now on all workers and kept.

    Args:
        directory: of the run.
        study: options of the search.
        dense: of the run, which has images of the profile.
        feasible: its targets and what its space reaches.
        runner: prepared, with factors and frames.
        progress: called with ("first answer", points done, in all).

    Raises:
        CompressionError: what concerns every trial, or the file of an answer before cannot be read.
    """
    wanted = wanted_shares(feasible.limits, feasible.reach)
    mark = _mark(study, dense, wanted)
    kept = read_first_answer(directory)
    if kept is not None and kept.mark == mark:
        return kept
    progress(STAGE, 0, sum(map(len, wanted.values())))
    knapsack, points = knapsack_of(dense, study.measured_profile), list[tuple[Cost, float, Predicted]]()
    for cost, shares in wanted.items():
        found = predicted(knapsack, {cost: dense.costs.dense[cost]}, shares)
        points += [(cost, share, each) for share, each in zip(shares, found, strict=True)]
    measured = _measured(directory, runner, [each.allocation for _, _, each in points], progress)
    answer = FirstAnswer(
        mark=mark,
        images=dense.profile_images,
        dense=dict(dense.costs.dense),
        points=tuple(_point(dense, *point, measured) for point in points),
    )
    write_first_answer(directory, answer)
    return answer


def wanted_shares(limits: Sequence[Limits], reach: Reach) -> dict[Cost, tuple[float, ...]]:
    """Cost -> shares of the dense model's to ask about: of every cost that is bounded.

    Args:
        limits: of every budget of the search, its bounds.
        reach: of every cost, what the smallest allocation and the dense model have.
    """
    costs = dict.fromkeys(cost for bounds in limits for cost in bounds)
    asked = {cost: [bounds[cost] / reach[cost][1] for bounds in limits if cost in bounds] for cost in costs}
    return {cost: shares_between(reach[cost][0] / reach[cost][1], asked[cost]) for cost in costs}


def shares_between(least: float, asked: Sequence[float]) -> tuple[float, ...]:
    """A dozen shares of a cost, ascending: the usual ones and those that were asked for, where they are reached; the least that
    is reached; and others, each in the middle of the widest gap by its ratio.
    """
    low = math.ceil(least * 10**_DIGITS) / 10**_DIGITS
    reached = (round(share, _DIGITS) for share in (_MOST, *_USUAL, *asked))
    found = sorted({low, *(share for share in reached if low <= share < 1)})
    while len(found) < _POINTS:
        ratio, index = max((high / low, index) for index, (low, high) in enumerate(pairwise((*found, 1.0))))
        if ratio < _APART**2:
            break
        found.insert(index + 1, round(found[index] * math.sqrt(ratio), _DIGITS))
    return tuple(found)


def _measured(
    directory: Path, runner: Runner, allocations: Sequence[Allocation], progress: Told
) -> Mapping[Allocation, tuple[float, float]]:
    """Allocation -> its divergence as built and the share of answers that change; those that were not measured are missing."""
    each = list(dict.fromkeys(allocations))
    jobs = [Screening(number=-1 - index, candidates=(allocation,)) for index, allocation in enumerate(each)]
    done = len(allocations) - len(each)

    def ended(result: object) -> None:
        nonlocal done
        done += 1
        progress(STAGE, done, len(allocations))

    results = run_before(runner, jobs, directory / "trials", ended)
    return {
        allocation: (result.divergences[0], result.changed[0])
        for index, allocation in enumerate(each)
        if isinstance(result := results.get(-1 - index), Screened)
    }


def _point(
    dense: DenseModel, cost: Cost, share: float, found: Predicted, measured: Mapping[Allocation, tuple[float, float]]
) -> FirstPoint:
    divergence, changed = measured.get(found.allocation, (math.nan, math.nan))
    return FirstPoint(
        cost=cost,
        share=share,
        allocation=found.allocation,
        costs=dense.costs.costs(found.allocation),
        predicted=found.divergence,
        divergence=divergence if math.isfinite(divergence) else None,
        changed=changed if math.isfinite(changed) else None,
    )


def _mark(study: StudyConfig, dense: DenseModel, wanted: Mapping[Cost, tuple[float, ...]]) -> str:
    """Hash of all that the answer depends on."""
    options = study.measured_profile, study.tokens, study.drop
    fixed = dense.fingerprint, dense.profile_images, sorted(dense.costs.dense.items()), options, sorted(wanted.items())
    return hashlib.sha256(repr(fixed).encode()).hexdigest()[:16]
