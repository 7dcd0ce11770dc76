"""pareto.png and pareto.svg: the front as a picture for a README or a paper."""

import html
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from objectives.cost.spec import MAIN
from search.report.front_plot import FrontPlot, Limit, Trace, drawn, front_plot
from search.report.label_places import PLACES, Labels
from search.run.finished_trial import FinishedTrial
from search.run.summary import RunSummary
from spaces.files import replacing

_HALO = withStroke(linewidth=2.5, foreground="white")


def write_pictures(paths: Sequence[Path], summary: RunSummary, trials: Sequence[FinishedTrial]) -> None:
    """Write a picture of error (%) against the main cost kept (%), for a README or a paper, in the formats of the suffixes.

    Shows all finished trials, the front, the named baselines, the targets on that cost and the dense model's own error;
    with no finished trial, empty axes that say so.

    Args:
        paths: of the files.
        summary: of the run.
        trials: of the run.
    """
    points, figure = drawn(trials), Figure(figsize=(7.2, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(f"{summary.model}, space {summary.space}", loc="left", fontsize=10, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    if points:
        _draw(axes, front_plot(MAIN, summary, points))
    else:
        axes.text(0.5, 0.5, "no finished trial", ha="center", va="center", transform=axes.transAxes)
    canvas = FigureCanvasAgg(figure)
    for path in paths:
        with replacing(path) as partial:
            canvas.print_figure(partial, dpi=160, format=path.suffix[1:], facecolor="white")


def _draw(axes: Axes, drawn: FrontPlot) -> None:
    """Draw the coordinates with matplotlib."""
    trials, line, front, dense = (drawn.traces[name] for name in ("trials", "line", "front", "dense"))
    intervals, tied = drawn.traces["intervals"], drawn.traces["tied"]
    axes.set(xlim=drawn.ranges["x"], ylim=drawn.ranges["y"], xlabel=drawn.title)
    axes.set_ylabel(drawn.errors)
    axes.grid(color="#e4e7ea", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.scatter(trials.x, trials.y, s=13, color="#a3abb3", linewidths=0, label="trials")
    axes.plot(line.x, line.y, color="#1d5fa8", linewidth=1.6, label=drawn.front)
    axes.scatter(front.x, front.y, s=24, color="#1d5fa8", zorder=3)
    if intervals.x and intervals.error_y is not None:
        ends = [intervals.error_y.arrayminus, intervals.error_y.array]
        axes.errorbar(
            intervals.x,
            intervals.y,
            ends,
            fmt="none",
            ecolor="#1d5fa8",
            alpha=0.6,
            elinewidth=0.8,
            capsize=2,
            label="95 % intervals",
        )
    if tied.x:
        axes.scatter(
            tied.x, tied.y, s=85, facecolor="none", edgecolor="#1d5fa8", linewidths=1, label="≈ not told apart from the best"
        )
    axes.axhline(dense.y[0], color="#3c4650", linewidth=0.9, linestyle=(0, (4, 3)), label=drawn.reference)
    axes.scatter(dense.x, dense.y, s=110, marker="*", color="#3c4650", zorder=4)
    for limit in drawn.limits:
        _draw_limit(axes, limit)
    _draw_baselines(axes, drawn.traces["baselines"], drawn.labels["wide"])
    axes.legend(fontsize=8, facecolor="white", edgecolor="none", loc="upper right")


def _draw_limit(axes: Axes, limit: Limit) -> None:
    across = -4 if limit.side == "right" else 4
    axes.axvspan(axes.get_xlim()[0], limit.x, color="#1a7f5a", alpha=0.08, linewidth=0)
    axes.axvline(limit.x, color="#1a7f5a", linewidth=1.1)
    at, frame = (limit.x, limit.y), ("data", "axes fraction")
    text = axes.annotate(html.unescape(limit.text), at, (across, 0), frame, "offset points")
    text.set(ha=limit.side, va="bottom", fontsize=8.5, color="#12593f", parse_math=False)


def _draw_baselines(axes: Axes, trace: Trace, labels: Labels) -> None:
    axes.scatter(trace.x, trace.y, s=34, marker="D", facecolor="white", edgecolor="#b4540a", zorder=4)
    for x, y, label, place in zip(trace.x, trace.y, labels.text, labels.textposition, strict=True):
        across, up, horizontal, vertical = PLACES[place]
        text = axes.annotate(html.unescape(label), (x, y), (across, up), textcoords="offset points")
        text.set(ha=horizontal, va=vertical, fontsize=8.5, color="#8f4207", zorder=5, parse_math=False, path_effects=[_HALO])
