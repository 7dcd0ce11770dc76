"""What the front's figure shows, as coordinates; drawn by the page (html.py) and the picture (front_image.py)."""

import html
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, TypeGuard

import pandas as pd

from objectives.cost.spec import CostSpec, counted_costs, known_costs, word_of

Row = Mapping[str, Any]
Box = tuple[float, float, float, float]

# Where a label may stand beside its point, best first: Plotly's name -> offset in points and alignment for matplotlib.
PLACES = {
    "top right": (5, 4, "left", "bottom"),
    "bottom left": (-5, -4, "right", "top"),
    "top left": (-5, 4, "right", "bottom"),
    "bottom right": (5, -4, "left", "top"),
}
# Assumed width of a label's character, as a share of the axes, on a wide screen and on a telephone.
_CHARACTERS = {"wide": 0.013, "narrow": 0.025}
# Distance, as a share of the axes, below which two baselines share a label.
_NEAR = 0.04


def costs_of(summary: Row) -> tuple[CostSpec, ...]:
    """The costs that a run has: measured ones only where that of the dense model was."""
    return known_costs(name for name, value in summary["dense"].items() if is_finite(value))


def split_trials(trials: pd.DataFrame) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Trials with figures to draw, those that were stopped early, and the failed ones.

    Missing labels become '', missing reasons '' or why the trial is not drawn.
    """
    points, stopped, failed = [], [], []
    for record in trials.to_dict("records"):
        row = {str(column): value for column, value in record.items()}
        row |= {column: row[column] if isinstance(row.get(column), str) else "" for column in ("label", "reason")}
        row["number"] = int(row["number"])
        if row["state"] == "PRUNED":
            stopped.append(row)
        elif row["state"] != "COMPLETE":
            failed.append({**row, "reason": row["reason"] or "no reason given"})
        elif not all(is_finite(row[column]) for column in ("error", *(spec.name for spec in counted_costs()))):
            failed.append({**row, "reason": "its error or a cost is not finite"})
        else:
            points.append(row)
    return points, stopped, failed


def figure_of(spec: CostSpec, summary: Row, points: Sequence[Row], stopped: Sequence[Row] = ()) -> dict[str, Any]:
    """Coordinates, in percent, of everything drawn for one cost; the colours and the library are the caller's.

    Trials for which the cost was not measured are left out. Those that were stopped early have the error at their last rung,
    which the axes need not hold.
    """
    cost, dense, numbers = spec.name, summary["dense"], {row["number"] for row in summary["front"]}
    points, stopped = ([row for row in rows if is_finite(row.get(cost))] for rows in (points, stopped))
    front = sorted((row for row in points if row["number"] in numbers), key=lambda row: (row[cost], row["error"]))
    named = [row for row in points if row["label"] not in ("", "dense")]
    star = next((row["number"] for row in points if row["label"] == "dense"), None)
    traces: dict[str, Row] = {
        "trials": _trace(points, cost, dense),
        "line": _trace(_lower(front), cost, dense),
        "front": _trace(front, cost, dense),
        "baselines": _trace(named, cost, dense),
        "dense": {"x": [100.0], "y": [100 * reference_of(dense)[0]], "customdata": [star]},
    }
    limits = [(100 * target["limit"] / dense[cost], target["text"]) for target in summary["targets"] if target["cost"] == cost]
    ranges = _ranges(traces, [x for x, _ in limits])
    at_rung = [{**row, "error": row["rung_error"]} for row in stopped if is_finite(row["rung_error"])]
    figure = {"traces": traces | {"stopped": _trace(at_rung, cost, dense)}, "ranges": ranges}
    return {
        **figure,
        "labels": {screen: _labels([row["label"] for row in named], figure, width) for screen, width in _CHARACTERS.items()},
        "limits": [_limit(index, x, text, ranges["x"]) for index, (x, text) in enumerate(limits)],
        "title": f"{spec.word} kept (% of the dense {spec.format(dense[cost])})",
        "front": f"front of {', '.join(map(word_of, summary['objectives']))}",
        "reference": reference_of(dense)[1],
    }


def _trace(rows: Sequence[Row], cost: str, dense: Row) -> dict[str, list[Any]]:
    return {
        "x": [round(100 * row[cost] / dense[cost], 4) for row in rows],
        "y": [round(100 * row["error"], 4) for row in rows],
        "customdata": [row["number"] for row in rows],
    }


def _lower(front: Sequence[Row]) -> list[Row]:
    """The rows, given from the cheapest, that no cheaper one beats: all of them where the cost is the only objective."""
    kept: list[Row] = []
    for row in front:
        if not kept or row["error"] < kept[-1]["error"]:
            kept.append(row)
    return kept


def _ranges(traces: Mapping[str, Row], limits: list[float]) -> dict[str, tuple[float, float]]:
    """Axis ranges that hold every point and limit, with a margin for markers, and below for the targets' texts."""
    ranges = {}
    for axis, extra in (("x", limits), ("y", [])):
        values = [value for trace in traces.values() for value in trace[axis]] + extra
        margin = 0.07 * ((max(values) - min(values)) or 1.0)
        ranges[axis] = (min(values) - margin * (2.0 if axis == "y" else 1.0), max(values) + margin)
    return ranges


def _limit(index: int, x: float, text: str, span: tuple[float, float]) -> dict[str, Any]:
    """A target's line; its text stands low on the side that is kept, unless the edge is near, above the text before it."""
    side = "right" if x - span[0] > 0.25 * (span[1] - span[0]) else "left"
    return {"x": x, "y": 0.01 + 0.06 * index, "side": side, "text": html.escape(text)}


def _labels(names: Sequence[str], figure: Row, width: float) -> dict[str, list[str]]:
    """The baselines' labels, each placed where it covers no label and no point of the front; '' where all places do.

    Points that nearly coincide share one label, on the first of them.

    Args:
        names: one per baseline.
        figure: traces and ranges of the figure.
        width: assumed width of a character, as a share of the axes.
    """
    (left, right), (low, high) = figure["ranges"]["x"], figure["ranges"]["y"]
    scaled = {
        name: [((x - left) / (right - left), (y - low) / (high - low)) for x, y in zip(trace["x"], trace["y"], strict=True)]
        for name, trace in figure["traces"].items()
    }
    taken = [(x - 0.01, y - 0.01, x + 0.01, y + 0.01) for name in ("baselines", "front", "dense") for x, y in scaled[name]]
    points = scaled["baselines"]
    labels = {"text": [""] * len(names), "textposition": ["top right"] * len(names)}
    for group in _groups(points):
        together = ", ".join(dict.fromkeys(names[index] for index in group))
        if len(group) > 1 and (place := _place(points[group[0]], width * len(together), taken)):
            labels["text"][group[0]], labels["textposition"][group[0]] = html.escape(together), place
            continue
        for index in group:
            if place := _place(points[index], width * len(names[index]), taken):
                labels["text"][index], labels["textposition"][index] = html.escape(names[index]), place
    return labels


def _groups(points: Sequence[tuple[float, float]]) -> list[list[int]]:
    """Indices of points that lie so near to each other that they share a label."""
    groups: list[list[int]] = []
    for index, (x, y) in enumerate(points):
        near = (group for group in groups if abs(points[group[0]][0] - x) < _NEAR and abs(points[group[0]][1] - y) < _NEAR)
        group = next(near, None)
        if group is None:
            groups.append([index])
        else:
            group.append(index)
    return groups


def _place(point: tuple[float, float], width: float, taken: list[Box]) -> str | None:
    """Where a label of this width covers nothing that is `taken`, to which it is added; None if there is no such place."""
    for place in PLACES:
        box = _box(*point, width, place)
        if _is_free(box, taken):
            taken.append(box)
            return place
    return None


def _box(x: float, y: float, width: float, place: str, height: float = 0.055) -> Box:
    left = x + 0.012 if "right" in place else x - 0.012 - width
    low = y + 0.012 if "top" in place else y - 0.012 - height
    return left, low, left + width, low + height


def _is_free(box: Box, taken: Sequence[Box]) -> bool:
    if min(box) < 0.0 or max(box) > 1.0:
        return False
    return all(box[2] <= other[0] or other[2] <= box[0] or box[3] <= other[1] or other[3] <= box[1] for other in taken)


def reference_of(dense: Row) -> tuple[float, str]:
    """The dense error that trials are compared with, and what it is; without a fine-tuned one, the error as loaded."""
    if dense["error_finetuned"] is not None:
        return float(dense["error_finetuned"]), "dense, given the same fine-tune"
    return float(dense["error"]), "dense, not fine-tuned"


def is_finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, Real) and math.isfinite(value)
