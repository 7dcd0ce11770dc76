"""A point exactly on a budget, where the front has a gap: built from the factors, with multipliers of trials near the gap.

The knapsack decodes the multipliers of the nearest trials on either side, of their mean, and of the profile alone on the whole
budget; tokens and dropped branches stay those of the best trial. Of these allocations the one that diverges least from the
dense model as built is given the run's short fine-tune.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from objectives.dense_model import DenseModel
from objectives.evaluator import Evaluator, OnStep, go_on
from objectives.outcomes import Outcomes
from search.budgets.knapsack import Knapsack, knapsack_of
from search.budgets.parametrisation import BUDGET
from search.deploy.points import MATERIALISED, Point
from search.evidence.intervals import difference_interval
from search.layout import outcomes_in, outcomes_of, weights_in
from search.run.run import Run
from search.runners.job import screen
from spaces.allocation import Allocation
from spaces.errors import CheckpointError, RunError
from spaces.schema import NUMBER, Each, read_json

Floats = NDArray[np.float64]


def materialise(
    run: Run, evaluator: Evaluator, best: Point, scratch: Path, on_step: OnStep = lambda step: None
) -> Point | None:
    """The point on the budget that `best` was picked for, fine-tuned as the run's trials are and measured on the search split.

    Args:
        run: where `best` is from.
        evaluator: of the run.
        best: the best trial under a target.
        scratch: folder for its fine-tuned weights, as `weights_in` names them.
        on_step: called after every optimiser step.

    Returns:
        The point, which may be worse than `best`; None where no allocation uses more of the budget that has not been a trial.

    Raises:
        RunError: the run has recipes only, and no factors to build from.
        DivergedError: the fine-tune diverged.
    """
    if run.config.study.recipe is not None:
        raise RunError(
            f"{run.directory} holds the recipe {run.config.study.recipe!r} alone: only a search knows what else fits a budget"
        )
    candidates = dict(_candidates(run, evaluator.dense, best))
    if not candidates:
        return None
    chosen = _least_divergent(evaluator, list(candidates))
    load = evaluator.dense.costs.load(chosen, best.limits)
    point = replace(exact_of(best), allocation=chosen, space=evaluator.dense.space.name, load=load, between=candidates[chosen])
    return measured(evaluator, point, run.config.study.seed, weights_in(scratch, point.name), on_step)


def exact_of(best: Point) -> Point:
    """What is materialised in place of the best trial under a target, as far as it is known before."""
    assert best.number is not None and best.error is not None
    instead_of = (best.number, best.error)
    name = f"{best.name}-exact"
    return replace(
        best, name=name, number=None, label=MATERIALISED, costs={}, error=None, expected=None, tied=(), instead_of=instead_of
    )


def measured(evaluator: Evaluator, point: Point, seed: int, weights: Path, on_step: OnStep) -> Point:
    """A point that is no trial, with its costs and, after the short fine-tune of trials, its error on the search split.

    Args:
        evaluator: of the run.
        point: of the searched space.
        seed: of the run's fine-tunes.
        weights: file for its fine-tuned weights; beside it lies what they make of every image, in `outcomes_in` it.
        on_step: called after every optimiser step.

    Raises:
        DivergedError: the fine-tune diverged.
    """
    error = evaluator.evaluate(point.allocation, seed, on_step, weights, go_on, outcomes=outcomes_in(weights)).error
    return replace(point, costs=evaluator.dense.costs.costs(point.allocation), error=error)


def is_worse(run: Run, built: Point, best: Point, scratch: Path) -> bool:
    """Whether a point that was built is worse than the best trial beyond chance, image by image on the search split.

    Where the images of the trial are not known, whether its error is larger.

    Args:
        run: of the trial.
        built: by `materialise`.
        best: what it was built in place of.
        scratch: as `materialise` was given it.
    """
    assert best.number is not None and best.error is not None and built.error is not None
    try:
        mine = Outcomes.load(outcomes_in(weights_in(scratch, built.name))).wrong.numpy()
        trial = Outcomes.load(outcomes_of(run.directory, best.number)).wrong.numpy()
    except CheckpointError:
        return built.error > best.error
    return difference_interval(mine, trial).low > 0 if len(mine) == len(trial) else built.error > best.error


def _least_divergent(evaluator: Evaluator, candidates: Sequence[Allocation]) -> Allocation:
    """Of candidates as built; the first one where no images were set aside for that."""
    if len(candidates) == 1 or evaluator.dense.objective.data.profile_images == 0:
        return candidates[0]
    divergences = [found.divergence for found in screen(evaluator, candidates)]
    return min(zip(divergences, candidates, strict=True), key=lambda pair: pair[0] if math.isfinite(pair[0]) else math.inf)[1]


def _candidates(run: Run, dense: DenseModel, best: Point) -> Iterator[tuple[Allocation, tuple[int, ...]]]:
    """Allocations on the budget that are no trial and use more of it, with the trials whose multipliers they come from."""
    knapsack = knapsack_of(dense, run.config.study.measured_profile)
    seen, frame = {trial.allocation for trial in run.complete}, _frame_of(knapsack, best.allocation)
    for multipliers, between in _multipliers(run, knapsack, best):
        allocation = knapsack.allocate(best.limits, dict(zip(knapsack.sites, multipliers.tolist(), strict=True)), frame)
        if allocation not in seen and dense.costs.load(allocation, best.limits) > (best.load or 0.0):
            seen.add(allocation)
            yield allocation, between


def _frame_of(knapsack: Knapsack, allocation: Allocation) -> int:
    """The frame that an allocation is inside of; the first one, which loses nothing, where the search has no such frame."""
    space, frames = knapsack.space, knapsack.frames
    kept = [site.name for site in space.all_sites if site.kind in ("branch", "tokens") and site.name in allocation]
    bases = (frames.base(space, frame) for frame in range(len(frames)))
    return next((frame for frame, base in enumerate(bases) if all(base[name] == allocation[name] for name in kept)), 0)


def _multipliers(run: Run, knapsack: Knapsack, best: Point) -> Iterator[tuple[Floats, tuple[int, ...]]]:
    """What the nearest trials on either side of the gap were proposed with, their mean first, and nothing but the profile."""
    assert best.number is not None
    near = [number for number in (best.number, _above(run, best)) if number is not None]
    sampled = {number: found for number in near if (found := _sampled(run, number, knapsack.sites)) is not None}
    if len(sampled) > 1:
        yield np.mean(list(sampled.values()), axis=0), tuple(sampled)
    for number, multipliers in sampled.items():
        yield multipliers, (number,)
    yield np.zeros(len(knapsack.sites)), ()


def _above(run: Run, best: Point) -> int | None:
    """The trial of the front that is the nearest one above the budget."""
    loads = {trial.number: trial.load(best.limits) for trial in run.front if trial.space == run.space.name}
    return min((number for number, load in loads.items() if load > 1), key=loads.__getitem__, default=None)


def _sampled(run: Run, number: int, sites: tuple[str, ...]) -> Floats | None:
    """Multipliers that a trial was proposed with, [sites]; None where it was proposed otherwise, or its file is gone."""
    path = run.directory / "trials" / f"{number:04d}" / "allocation.json"
    try:
        parameters = read_json(path, {"parameters": Each(NUMBER)})["parameters"]
        return np.array([float(parameters[name]) for name in sites]) if BUDGET in parameters else None
    except (OSError, ValueError, KeyError):
        return None
