"""report.html and pareto.png: what a search found, drawn for a person to look at."""

import base64
import hashlib
import html
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from plotly.offline import get_plotlyjs

from spaces.files import replacing, write_text
from spaces.sites import Site

Row = Mapping[str, Any]
Box = tuple[float, float, float, float]

COSTS = {"macs": "MACs", "params": "parameters"}

_TEMPLATES = Path(__file__).with_name("templates")
# Where a label may stand beside its point, best first: Plotly's name -> offset in points and alignment for matplotlib.
_PLACES = {
    "top right": (5, 4, "left", "bottom"),
    "bottom left": (-5, -4, "right", "top"),
    "top left": (-5, 4, "right", "bottom"),
    "bottom right": (5, -4, "left", "top"),
}
# Assumed width of a label's character, as a share of the axes, on a wide screen and on a telephone.
_CHARACTERS = {"wide": 0.013, "narrow": 0.025}

_HALO = withStroke(linewidth=2.5, foreground="white")


def write_report(path: Path, summary: dict[str, Any], trials: pd.DataFrame, sites: Sequence[Site], run: str = "RUN") -> None:
    """Write one self-contained HTML page: front, allocations, failures. It requests nothing from the network.

    Trials that are not COMPLETE, or whose error, MACs or parameters are not finite, are listed and not drawn. With
    no trial left the page says so. Any text of the search (model, labels, reasons) is shown as text, never as markup.

    Args:
        path: the file to write, atomically.
        summary: model, space, objectives, dense figures, targets, states, best and front of the search.
        trials: a row per trial: state, label, reason, error in [0, 1], costs, and one column per site.
        sites: the sites of the space, in model order.
        run: run directory, as the copied export command names it.
    """
    points, failed = _split(trials)
    best = next((row for row in points if row["number"] == summary["best"]), None)
    style, script = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    scripts: list[str] = [get_plotlyjs(), script]
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            summary=summary,
            data=_data(summary, points, sites, run) if points else None,
            best=best and {"number": best["number"], **_texts(best, summary)},
            reference=_reference(summary["dense"])[1],
            rows=_table(summary, points),
            failed=failed,
            style=Markup(style),
            scripts=[Markup(text) for text in scripts],
            # Only these scripts may run, so markup that slipped through could not.
            policy=" ".join(_digest(text) for text in scripts),
        )
    )
    write_text(path, page)


def write_picture(path: Path, summary: dict[str, Any], trials: pd.DataFrame) -> None:
    """Write a PNG of error (%) against MACs kept (%), for a README or a paper.

    Shows all finished trials, the front, the named baselines, the targets on MACs and the dense model's own error;
    with no finished trial, empty axes that say so.
    """
    points, _ = _split(trials)
    figure = Figure(figsize=(7.2, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(f"{summary['model']}, space {summary['space']}", loc="left", fontsize=10, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    if points:
        _draw(axes, _figure("macs", summary, points))
    else:
        axes.text(0.5, 0.5, "no finished trial", ha="center", va="center", transform=axes.transAxes)
    with replacing(path) as partial:
        FigureCanvasAgg(figure).print_figure(partial, dpi=160, format="png", facecolor="white")


def _split(trials: pd.DataFrame) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Trials with figures to draw, and the others with the reason why not; missing labels and reasons become ''."""
    points, failed = [], []
    for record in trials.to_dict("records"):
        row = {str(column): value for column, value in record.items()}
        row |= {column: row[column] if isinstance(row.get(column), str) else "" for column in ("label", "reason")}
        row["number"] = int(row["number"])
        if row["state"] != "COMPLETE":
            failed.append({**row, "reason": row["reason"] or "no reason given"})
        elif not all(_is_finite(row[column]) for column in ("error", *COSTS)):
            failed.append({**row, "reason": "its error or a cost is not finite"})
        else:
            points.append(row)
    return points, failed


def _data(summary: Row, points: list[dict[str, Any]], sites: Sequence[Site], run: str) -> dict[str, Any]:
    """What the page's script reads."""
    wanted = [summary["best"], *(row["number"] for row in sorted(summary["front"], key=lambda row: row["macs"]))]
    shown = {row["number"]: row for row in points}
    reference, _ = _reference(summary["dense"])
    return {
        "sites": [_site(site) for site in sites],
        "points": {
            number: {"label": row["label"], "sizes": [int(row[site.name]) for site in sites], **_texts(row, summary)}
            for number, row in shown.items()
        },
        "figures": {cost: _figure(cost, summary, points) for cost in COSTS},
        "chosen": next((number for number in wanted if number in shown), points[0]["number"]),
        "dense": _number(reference, ".2%"),
        "command": f"python run_search.py export {shlex.quote(run)} --trial ",
    }


def _site(site: Site) -> dict[str, Any]:
    """A site's cell in the table of sizes: block 3 and column attn.qk for blocks.3.attn.qk."""
    match = re.fullmatch(r"(?:.*\.)?blocks\.(\d+)\.(.+)", site.name)
    block, column = match.groups() if match else (site.branch, site.name.rpartition(".")[2])
    return {"name": site.name, "block": block, "column": column, "kind": site.kind, "dense": site.dense}


def _figure(cost: str, summary: Row, points: list[dict[str, Any]]) -> dict[str, Any]:
    """Coordinates, in percent, of everything drawn for one cost; the colours and the library are the caller's."""
    dense = summary["dense"]
    front = sorted(summary["front"], key=lambda row: (row[cost], row["error"]))
    named = [row for row in points if row["label"] not in ("", "dense")]
    star = next((row["number"] for row in points if row["label"] == "dense"), None)
    traces: dict[str, Row] = {
        "trials": _trace(points, cost, dense),
        "line": _trace(_lower(front), cost, dense),
        "front": _trace(front, cost, dense),
        "baselines": _trace(named, cost, dense),
        "dense": {"x": [100.0], "y": [100 * _reference(dense)[0]], "customdata": [star]},
    }
    limits = [(100 * target["limit"] / dense[cost], target["text"]) for target in summary["targets"] if target["cost"] == cost]
    ranges = _ranges(traces, [x for x, _ in limits])
    figure = {"traces": traces, "ranges": ranges}
    return {
        **figure,
        "labels": {screen: _labels([row["label"] for row in named], figure, width) for screen, width in _CHARACTERS.items()},
        "limits": [_limit(index, x, text, ranges["x"]) for index, (x, text) in enumerate(limits)],
        "title": f"{COSTS[cost]} kept (% of the dense {_count(dense[cost])})",
        "front": f"front of {', '.join(COSTS.get(name, name) for name in summary['objectives'])}",
        "reference": _reference(dense)[1],
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
        ranges[axis] = (min(values) - margin * (1.6 if axis == "y" else 1.0), max(values) + margin)
    return ranges


def _limit(index: int, x: float, text: str, span: tuple[float, float]) -> dict[str, Any]:
    """A target's line; its text stands low on the side that is kept, unless the edge is near, above the text before it."""
    side = "right" if x - span[0] > 0.25 * (span[1] - span[0]) else "left"
    return {"x": x, "y": 0.01 + 0.06 * index, "side": side, "text": html.escape(text)}


def _labels(names: Sequence[str], figure: Row, width: float) -> dict[str, list[str]]:
    """The baselines' labels, each placed where it covers no label and no point of the front; '' where all places do.

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
    labels: dict[str, list[str]] = {"text": [], "textposition": []}
    for name, (x, y) in zip(names, scaled["baselines"], strict=True):
        boxes = {place: _box(x, y, width * len(name), place) for place in _PLACES}
        place = next((place for place, box in boxes.items() if _is_free(box, taken)), None)
        taken += [boxes[place]] if place else []
        labels["text"].append(html.escape(name) if place else "")
        labels["textposition"].append(place or "top right")
    return labels


def _box(x: float, y: float, width: float, place: str, height: float = 0.055) -> Box:
    left = x + 0.012 if "right" in place else x - 0.012 - width
    low = y + 0.012 if "top" in place else y - 0.012 - height
    return left, low, left + width, low + height


def _is_free(box: Box, taken: Sequence[Box]) -> bool:
    if min(box) < 0.0 or max(box) > 1.0:
        return False
    return all(box[2] <= other[0] or other[2] <= box[0] or box[3] <= other[1] or other[3] <= box[1] for other in taken)


def _draw(axes: Axes, drawn: Row) -> None:
    """Draw the coordinates of `_figure` with matplotlib."""
    trials, line, front, dense = (drawn["traces"][name] for name in ("trials", "line", "front", "dense"))
    axes.set(xlim=drawn["ranges"]["x"], ylim=drawn["ranges"]["y"], xlabel=drawn["title"])
    axes.set_ylabel("top-1 error on the search split (%)")
    axes.grid(color="#e4e7ea", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.scatter(trials["x"], trials["y"], s=13, color="#a3abb3", linewidths=0, label="trials")
    axes.plot(line["x"], line["y"], color="#1d5fa8", linewidth=1.6, label=drawn["front"])
    axes.scatter(front["x"], front["y"], s=24, color="#1d5fa8", zorder=3)
    axes.axhline(dense["y"][0], color="#3c4650", linewidth=0.9, linestyle=(0, (4, 3)), label=drawn["reference"])
    axes.scatter(dense["x"], dense["y"], s=110, marker="*", color="#3c4650", zorder=4)
    for limit in drawn["limits"]:
        _draw_limit(axes, limit)
    _draw_baselines(axes, {**drawn["traces"]["baselines"], **drawn["labels"]["wide"]})
    axes.legend(fontsize=8, facecolor="white", edgecolor="none", loc="upper right")


def _draw_limit(axes: Axes, limit: Row) -> None:
    across = -4 if limit["side"] == "right" else 4
    axes.axvspan(axes.get_xlim()[0], limit["x"], color="#1a7f5a", alpha=0.08, linewidth=0)
    axes.axvline(limit["x"], color="#1a7f5a", linewidth=1.1)
    at, frame = (limit["x"], limit["y"]), ("data", "axes fraction")
    text = axes.annotate(html.unescape(limit["text"]), at, (across, 0), frame, "offset points")
    text.set(ha=limit["side"], va="bottom", fontsize=8.5, color="#12593f", parse_math=False)


def _draw_baselines(axes: Axes, trace: Row) -> None:
    axes.scatter(trace["x"], trace["y"], s=34, marker="D", facecolor="white", edgecolor="#b4540a", zorder=4)
    for x, y, label, place in zip(trace["x"], trace["y"], trace["text"], trace["textposition"], strict=True):
        across, up, horizontal, vertical = _PLACES[place]
        text = axes.annotate(html.unescape(label), (x, y), (across, up), textcoords="offset points")
        text.set(ha=horizontal, va=vertical, fontsize=8.5, color="#8f4207", zorder=5, parse_math=False, path_effects=[_HALO])


def _table(summary: Row, points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the page's table: the front from its cheapest point, then the baselines that are not on it."""
    front = {row["number"] for row in summary["front"]}
    rows = sorted(points, key=lambda row: (row["number"] not in front, row["macs"], row["number"]))
    wanted = [row for row in rows if row["number"] in front or row["label"]]
    return [{**row, "is_front": row["number"] in front, **_texts(row, summary)} for row in wanted]


def _texts(row: Row, summary: Row) -> dict[str, str]:
    """The figures of one trial as text; '–' for a figure that it does not have."""
    dense = summary["dense"]
    reference, _ = _reference(dense)
    return {
        "macs_kept": _kept(row["macs"] / dense["macs"]),
        "params_kept": _kept(row["params"] / dense["params"]),
        "macs": _count(row["macs"]),
        "params": _count(row["params"]),
        "before": _number(row.get("error_before"), ".2%"),
        "error": _number(row["error"], ".2%"),
        "ratio": f"×{row['error'] / reference:.2f}" if reference > 0 else "–",
        "kl": f"{_number(row.get('kl_before'), '.3f')} → {_number(row.get('kl'), '.3f')}",
        "time": f"{_number(row.get('seconds'), '.0f')} s, seed {_number(row.get('seed'), '.0f')}",
    }


def _reference(dense: Row) -> tuple[float, str]:
    """The dense error that trials are compared with, and what it is; without a fine-tuned one, the error as loaded."""
    if dense["error_finetuned"] is not None:
        return float(dense["error_finetuned"]), "dense, given the same fine-tune"
    return float(dense["error"]), "dense, not fine-tuned"


def _kept(share: float) -> str:
    """Both sides of a ratio: 0.4 -> '40.0 % (−60.0 %)'."""
    change = f"{share - 1:+.1%}".replace("-", "−")
    return f"{share:.1%} ({'±0.0%' if change[1:] == '0.0%' else change})".replace("%", "\u00a0%")


def _number(value: Any, form: str) -> str:
    return format(value, form).replace("%", "\u00a0%") if _is_finite(value) else "–"


def _count(value: float) -> str:
    """1,234,000 -> '1.23 M'."""
    scale, unit = next((pair for pair in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if value >= pair[0]), (1.0, ""))
    return f"{value / scale:.2f}\u00a0{unit}" if unit else f"{value:.0f}"


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(_TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "ensure_ascii": False, "separators": (",", ":")}
    return environment
