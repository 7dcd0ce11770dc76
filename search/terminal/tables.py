"""The tables of a terminal: fronts, audits, exports, latencies."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from objectives.cost.spec import Cost, CostSpec, known_costs
from objectives.units import format_kept
from search.report.audit_tables import audit_tables
from search.report.comparison import differences, opened, run_names
from search.report.verdict import TIED, expected_text, legend, mark_of, verdicts
from search.run.audit_file import Audit
from search.run.options import stored_options
from search.run.summary import RunSummary
from spaces.errors import RunError

if TYPE_CHECKING:
    from search.deploy.points import Point
    from search.deploy.session import Exported


def fronts(directories: Sequence[Path]) -> Iterator[Table | str]:
    """The front of every run as a table for the terminal, what keeps them from being compared, and what cannot be read.

    Raises:
        RunError: none of them can be read.
    """
    runs, broken = opened(directories)
    options = []
    for name, run in zip(run_names([str(run.directory) for run in runs]), runs, strict=True):
        table, said = front_table(run.summary), verdicts(run.summary)
        if len(directories) > 1:
            table.title = f"{name}: {table.title}"
        yield table
        yield from said
        try:
            options.append(stored_options(run.directory))
        except RunError as error:
            broken.append((str(run.directory), str(error)))
            options.append({})
    yield from differences([run.summary for run in runs], options)
    yield from (f"{directory} cannot be shown: {reason}" for directory, reason in broken)


def front_table(summary: RunSummary) -> Table:
    """The front as a table for the terminal."""
    table, dense = Table(title="Pareto front (errors on the search split)", title_justify="left"), summary.dense.costs
    built = None if summary.split_before == "search" else f"errors as built are on {summary.images_before}"
    notes = [note for note in (built, legend(summary)) if note]
    table.caption, table.caption_justify = "\n".join(notes) or None, "left"
    known = any(point.expected is not None for point in summary.front)
    costs = [name.replace("keeps of ", "keeps of\n") for name in cost_columns(dense)]
    columns = ["trial", "label", *costs, "error\nas built", "error\nfine-tuned", *(["expected\n(95 %)"] if known else [])]
    for name in columns:
        table.add_column(name, justify="left" if name == "label" else "right", no_wrap=True)
    for point in summary.front:
        style = "bold green" if point.number in summary.best else None
        before = "–" if point.error_before is None else f"{point.error_before:.2%}"
        errors = [before, f"{point.error:.2%}"]
        if known:
            errors.append(expected_text(point.expected))
        number = f"{TIED} {point.number}" if mark_of(point.number, summary) == TIED else str(point.number)
        table.add_row(number, point.label or "", *cost_cells(point.costs, dense), *errors, style=style)
    return table


def audit_view(audit: Audit) -> Iterator[Table]:
    """An audit as tables for the terminal."""
    for shown in audit_tables(audit):
        table = Table(title=shown.title, title_justify="left")
        for index, name in enumerate(shown.columns):
            table.add_column(name, justify="left" if index == 0 else "right")
        for row in shown.rows:
            table.add_row(*row)
        yield table


def latency_table(rows: Iterable[Sequence[str]], where: str, threads: int) -> Table:
    """Timings of an exported model beside the dense one, for the terminal.

    Args:
        rows: of `objectives.deploy.compare_latency.rows_of`.
        where: the device.
        threads: on the CPU.
    """
    title = f"median (quartiles) of one call on {where}, {threads} thread" + ("s" if threads > 1 else "")
    caption = "this / dense: the median of the ratios of calls that followed each other, not the ratio of the medians"
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for name in ("setting", "dense", "this model", "this / dense"):
        table.add_column(name, justify="left" if name == "setting" else "right")
    for row in rows:
        table.add_row(*row)
    return table


def export_table(exported: Sequence["Exported"], dense: Mapping[Cost, float]) -> Table:
    """A row for every point that was asked for; `dense` has the costs of the dense model."""
    table = Table(title="Exported (errors on the search split)", title_justify="left")
    columns = cost_columns(dense)
    for name in ("folder", "trial", "label", *columns, "error", ""):
        table.add_column(name, justify="left" if name in ("folder", "label", "") else "right", overflow="fold")
    for entry in exported:
        state = f"failed: {entry.problem}" if entry.problem else "written" if entry.new else "was there"
        figures = [""] * (len(columns) + 3) if entry.point is None else _figures(entry.point, dense)
        name = entry.wish if entry.point is None else entry.point.name
        table.add_row(name, *figures, state, style="red" if entry.problem else None)
    return table


def _figures(point: "Point", dense: Mapping[Cost, float]) -> list[str]:
    """Trial, label, costs and error as text."""
    number = "" if point.number is None else str(point.number)
    return [number, point.label or "", *cost_cells(point.costs, dense), "" if point.error is None else f"{point.error:.2%}"]


def cost_columns(dense: Mapping[Cost, float]) -> list[str]:
    """Their titles.

    Args:
        dense: costs of the dense model; where a measured cost is known, counted ones are shown as shares alone.
    """
    return [name for spec in known_costs(dense) for name in (*_amounts(spec, dense, spec.word), f"keeps of {spec.word}")]


def cost_cells(costs: Mapping[Cost, float], dense: Mapping[Cost, float]) -> list[str]:
    """The texts of one model; empty for a cost that it does not have."""
    texts = []
    for spec in known_costs(dense):
        value = costs.get(spec.name)
        texts += _amounts(spec, dense, "" if value is None else spec.format(value))
        texts.append("" if value is None else format_kept(value / dense[spec.name]))
    return texts


def _amounts(spec: CostSpec, dense: Mapping[Cost, float], text: str) -> list[str]:
    """`text`, where the cost has a column of its own for amounts."""
    return [text] if spec.is_measured or not any(known.is_measured for known in known_costs(dense)) else []
