"""What the front's figure shows, as coordinates; drawn by the page (html.py) and the picture (front_image.py)."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from objectives.cost.spec import Cost, CostSpec, counted_costs, word_of
from search.report.label_places import Labels, placed_labels
from search.report.trial_texts import reference_name, reference_of
from search.report.verdict import TIED, mark_of
from search.run.finished_trial import FinishedTrial
from search.run.summary import RunSummary
from search.trial import DENSE

Span = tuple[float, float]

# Most intervals that are drawn of a front.
_BARS = 40


@dataclass(frozen=True, kw_only=True)
class Bars:
    """How far the interval of every point reaches above and below it, in percent; Plotly reads these names."""

    array: list[float]
    arrayminus: list[float]
    type: str = "data"
    symmetric: bool = False


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Points that are drawn alike: share of the cost kept, error, both in percent, and the numbers of the trials.

    The error is the expected one where that is known.
    """

    x: list[float]
    y: list[float]
    customdata: list[int | None]
    error_y: Bars | None = None


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The line of a target.

    Attributes:
        x: where, in percent of the dense model's cost.
        y: height of its text, as a share of the axis.
        side: of the line that the text is on.
        text: the target, as HTML.
    """

    x: float
    y: float
    side: Literal["left", "right"]
    text: str


@dataclass(frozen=True, kw_only=True)
class FrontPlot:
    """Everything drawn for one cost; its fields are what the page's script reads.

    Attributes:
        traces: name -> points: trials, intervals (of the front and of the best, with bars), line, front, tied (what cannot be
            told apart from the best), baselines, dense, stopped.
        ranges: x and y -> ends of the axis, in percent.
        labels: wide and narrow screen -> labels of the baselines.
        limits: of the targets on this cost.
        title: of the axis of the cost.
        errors: title of the other axis.
        front: what the front is of.
        reference: what the dense error is.
    """

    traces: Mapping[str, Trace]
    ranges: Mapping[str, Span]
    labels: Mapping[str, Labels]
    limits: tuple[Limit, ...]
    title: str
    errors: str
    front: str
    reference: str


def drawn(trials: Sequence[FinishedTrial]) -> list[FinishedTrial]:
    """The complete trials whose error and counted costs are finite."""
    names = ("error", *(spec.name for spec in counted_costs()))
    return [trial for trial in trials if trial.is_complete and all(math.isfinite(trial.figure(name)) for name in names)]


def front_plot(
    spec: CostSpec, summary: RunSummary, points: Sequence[FinishedTrial], stopped: Sequence[FinishedTrial] = ()
) -> FrontPlot:
    """Coordinates, in percent, of everything drawn for one cost; the colours and the library are the caller's.

    Trials for which the cost was not measured are left out. Those that were stopped early have the error at their last rung,
    which the axes need not hold.

    Args:
        spec: the cost.
        summary: of the run.
        points: its trials with an error.
        stopped: those that were stopped early.
    """
    dense, numbers = summary.dense.costs[spec.name], {point.number for point in summary.front}
    points, stopped = _known(points, spec.name), _known(stopped, spec.name)
    front = sorted(
        (trial for trial in points if trial.number in numbers),
        key=lambda trial: (trial.costs[spec.name], trial.objective("error")),
    )
    named = [trial for trial in points if trial.label not in (None, DENSE) and trial.repeats is None]
    star = next((trial.number for trial in points if trial.label == DENSE), None)
    traces = {
        "trials": _trace(points, spec.name, dense),
        "intervals": _with_bars(_barred(points, front, summary), spec.name, dense),
        "line": _trace(_lower(front), spec.name, dense),
        "front": _trace(front, spec.name, dense),
        "tied": _trace([trial for trial in points if mark_of(trial.number, summary) == TIED], spec.name, dense),
        "baselines": _trace(named, spec.name, dense),
        "dense": Trace(x=[100.0], y=[100 * reference_of(summary.dense)], customdata=[star]),
    }
    limits = _bounds(spec.name, summary)
    ranges = _ranges(traces, [x for x, _ in limits])
    names = [trial.label or "" for trial in named]
    at_rung = [replace(trial, error=trial.rung_error) for trial in stopped if _is_finite(trial.rung_error)]
    return FrontPlot(
        traces={**traces, "stopped": _trace(at_rung, spec.name, dense)},
        ranges=ranges,
        labels=_labels(names, traces, ranges),
        limits=tuple(_limit(index, x, text, ranges["x"]) for index, (x, text) in enumerate(limits)),
        title=f"{spec.word} kept (% of the dense {spec.format(dense)})",
        errors=error_title(points),
        front=f"front of {', '.join(map(word_of, summary.objectives))}",
        reference=reference_name(summary.dense),
    )


def _known(trials: Sequence[FinishedTrial], cost: Cost) -> list[FinishedTrial]:
    return [trial for trial in trials if _is_finite(trial.costs.get(cost))]


def error_title(trials: Sequence[FinishedTrial]) -> str:
    """What the errors of a plot are."""
    known = any(trial.expected is not None for trial in trials)
    return "expected top-1 error (%)" if known else "top-1 error on the search split (%)"


def _barred(points: Sequence[FinishedTrial], front: Sequence[FinishedTrial], summary: RunSummary) -> list[FinishedTrial]:
    """The trials whose intervals are drawn: the best ones, and the front, of a long one evenly spaced points."""
    some = {trial.number for trial in front[:: math.ceil(len(front) / _BARS) or 1]}
    return [trial for trial in points if trial.expected is not None and trial.number in some.union(summary.best)]


def _with_bars(trials: Sequence[FinishedTrial], cost: Cost, dense: float) -> Trace:
    found = [trial.expected for trial in trials if trial.expected is not None]
    bars = Bars(
        array=[round(100 * (each.high - each.mean), 4) for each in found],
        arrayminus=[round(100 * (each.mean - each.low), 4) for each in found],
    )
    return replace(_trace(trials, cost, dense), error_y=bars)


def _trace(trials: Sequence[FinishedTrial], cost: Cost, dense: float) -> Trace:
    return Trace(
        x=[round(100 * trial.costs[cost] / dense, 4) for trial in trials],
        y=[round(100 * trial.objective("error"), 4) for trial in trials],
        customdata=[trial.number for trial in trials],
    )


def _lower(front: Sequence[FinishedTrial]) -> list[FinishedTrial]:
    """The trials, given from the cheapest, that no cheaper one beats: all of them where the cost is the only objective."""
    kept: list[FinishedTrial] = []
    for trial in front:
        if not kept or trial.objective("error") < kept[-1].objective("error"):
            kept.append(trial)
    return kept


def _bounds(cost: Cost, summary: RunSummary) -> list[tuple[float, str]]:
    """The targets' bounds on a cost: percent of the dense model's, and text."""
    bounds = [(budget.limits[cost], bound) for budget in summary.targets for bound in budget.bounds if bound.cost == cost]
    return [(100 * limit / summary.dense.costs[cost], bound.text) for limit, bound in bounds]


def _ranges(traces: Mapping[str, Trace], limits: list[float]) -> dict[str, Span]:
    """Axis ranges that hold every point and limit, with a margin for markers, and below for the targets' texts."""
    across = [value for trace in traces.values() for value in trace.x] + limits
    up = [value for trace in traces.values() for value in (*trace.y, *_ends(trace))]
    return {"x": _range(across, low=1.0), "y": _range(up, low=2.0)}


def _ends(trace: Trace) -> list[float]:
    """Of the intervals of a trace."""
    bars = trace.error_y
    if bars is None:
        return []
    above = [y + reach for y, reach in zip(trace.y, bars.array, strict=True)]
    return above + [y - reach for y, reach in zip(trace.y, bars.arrayminus, strict=True)]


def _range(values: list[float], low: float) -> Span:
    margin = 0.07 * ((max(values) - min(values)) or 1.0)
    return min(values) - margin * low, max(values) + margin


def _limit(index: int, x: float, text: str, span: Span) -> Limit:
    """A target's line; its text stands low on the side that is kept, unless the edge is near, above the text before it."""
    side: Literal["left", "right"] = "right" if x - span[0] > 0.25 * (span[1] - span[0]) else "left"
    return Limit(x=x, y=0.01 + 0.06 * index, side=side, text=html.escape(text))


def _labels(names: Sequence[str], traces: Mapping[str, Trace], ranges: Mapping[str, Span]) -> dict[str, Labels]:
    """The baselines' labels, which cover no point of the front, on a wide and on a narrow screen."""
    (left, right), (low, high) = ranges["x"], ranges["y"]

    def scaled(name: str) -> list[tuple[float, float]]:
        return [
            ((x - left) / (right - left), (y - low) / (high - low)) for x, y in zip(traces[name].x, traces[name].y, strict=True)
        ]

    return placed_labels(names, scaled("baselines"), [*scaled("front"), *scaled("dense")])


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
