"""A point on a budget that no trial was spent on: what the profile alone chooses, built from the factors and left as it is."""

from dataclasses import replace
from pathlib import Path

from objectives.error import evaluate
from objectives.evaluator import Evaluator
from objectives.runtime.out_of_memory import within_memory
from search.budgets.knapsack import knapsack_of
from search.budgets.predicted import predicted
from search.deploy.points import Point
from search.run.run import Run
from spaces.tensors import save_tensors


def build_predicted(run: Run, evaluator: Evaluator, point: Point, weights: Path) -> Point:
    """The allocation of least predicted error on the budget of a point, measured as built on the search split.

    Args:
        run: with the options that it is predicted by.
        evaluator: of the run.
        point: `search.deploy.points.pick_predicted`'s.
        weights: file for the weights as built.

    Raises:
        DivergedError: its outputs are not finite.
    """
    dense = evaluator.dense
    (found,) = predicted(knapsack_of(dense, run.config.study.measured_profile), point.limits)
    model = evaluator.build(found.allocation).to(dense.device)
    save_tensors(weights, model.state_dict())
    return replace(
        point,
        allocation=found.allocation,
        load=dense.costs.load(found.allocation, point.limits),
        costs=dense.costs.costs(found.allocation),
        error=within_memory(lambda parts: evaluate(model, dense.batches.search(), parts=parts)).error,
    )
