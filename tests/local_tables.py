"""Made-up trials and summaries of runs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from objectives.cost.spec import Cost
from search.budgets.targets import Bound, Budget, Target
from search.run.finished_trial import FinishedTrial
from search.run.summary import Best, DenseFigures, FrontPoint, RunSummary, front_point
from spaces.allocation import Allocation
from spaces.sites import Operator, Site, Space

ENDED = "2026-11-24T01:00:00+00:00"


def finished(number: int, costs: Mapping[Cost, float], dense: Mapping[Cost, float], **changes: Any) -> FinishedTrial:
    """A complete trial of these costs; `changes` are other fields."""
    fields = {
        "state": "COMPLETE", "label": None, "space": "contract", "reason": None,
        "error": 0.5, "error_before": 0.6, "kl": 0.1, "kl_before": 0.2,
        "cross_entropy": 0.7,
        "costs": costs, "kept": {cost: value / dense[cost] for cost, value in costs.items()},
        "steps": 100, "kept_step": 100, "seconds": 3.0,
        "rung": None, "rung_error": None, "seed": 0, "ended": ENDED, "allocation": Allocation({}),
    }  # fmt: skip
    return FinishedTrial(number=number, **{**fields, **changes})


def pointed(number: int, costs: Mapping[Cost, float], **changes: Any) -> FrontPoint:
    """The same as a point of the front."""
    return front_point(finished(number, costs, costs, **changes))


def bests_of(numbers: Iterable[int | None]) -> tuple[Best | None, ...]:
    """Of every target the best trial, by its number alone."""
    return tuple(None if number is None else Best(number=number) for number in numbers)


def budget_of(*bounds: tuple[Cost, float, str]) -> Budget:
    """A target of some bounds: cost, limit and text."""
    parsed = tuple(Bound(text=text, cost=cost, amount=limit, is_percent=False) for cost, limit, text in bounds)
    target = Target(text=",".join(text for _, _, text in bounds), bounds=parsed)
    return Budget(target=target, bounds=parsed, limits={cost: limit for cost, limit, _ in bounds})


def space_with(sites: Sequence[Site]) -> Space:
    """The space `contract` of some sites, each of another branch or of the one before it."""
    branches = dict.fromkeys(site.branch for site in sites)
    offered = {branch: tuple(site for site in sites if site.branch == branch) for branch in branches}
    return Space(name="contract", branches={name: (Operator(name="contract", sites=of),) for name, of in offered.items()})


def summary_of(costs: Mapping[Cost, float], space: Space | None = None, /, **changes: Any) -> RunSummary:
    """The summary of a run of no trials, whose dense model has these costs; `changes` are other fields."""
    space = space or space_with(())
    fields = {
        "model": "made-up", "classes": None, "fingerprint": "f", "space": space.name, "spaces": {space.name: space},
        "dense": DenseFigures(costs=costs, error=0.24, error_finetuned=0.2),
        "split_before": "train",
        "reach": {cost: (value / 10, value) for cost, value in costs.items()},
        "objectives": ("error", "macs"), "targets": (),
    }  # fmt: skip
    return RunSummary(**{**fields, **changes})
