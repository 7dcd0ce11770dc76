"""Heat maps of the sensitivity profile, block by site: in the terminal, and as a picture."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from objectives.profile import Errors, Profile
from search.report.site_grid import SHARES, Grid, format_error, grid_of
from spaces.files import replacing
from spaces.sites import Space

_COLOURS = colormaps["YlOrRd"]
_SPAN = 1e-6  # smallest error with a colour of its own, as a share of the largest
_MISSING = "–"


def heat_table(errors: Errors, space: Space, share: float) -> Table:
    """One heat map for the terminal; it reads without colours too."""
    grid = grid_of(errors, space, share)
    scale, columns = _scale([grid]), _columns(grid)
    table = Table(title=f"nats lost with {100 * share:.0f} % of one site alone", title_justify="left", padding=0)
    for column in ("block", *columns):
        table.add_column(f" {column} ", no_wrap=True)
    for block, row in grid.items():
        cells = (_cell(row.get(column), len(column) + 2, scale) for column in columns)
        table.add_row(Text(block, justify="center"), *cells)
    return table


def write_heat_maps(path: Path, profile: Profile, space: Space, title: str) -> None:
    """Write a PNG with a heat map, block by site, for each of `SHARES`; one logarithmic colour scale for all."""
    grids = [grid_of(profile.errors, space, share) for share in SHARES]
    columns, scale = _columns(*grids), _scale(grids)
    width, height = 1.8 + len(SHARES) * (0.3 + 0.62 * len(columns)), 1.5 + 0.3 * len(grids[0])
    figure = Figure(figsize=(max(6.0, width), max(2.8, height)), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, parse_math=False)
    panels = figure.subplots(1, len(SHARES), sharey=True, squeeze=False)[0]
    for axes, share, grid in zip(panels, SHARES, grids, strict=True):
        _draw(axes, grid, columns, scale)
        axes.set_title(f"{100 * share:.0f} % of the site kept", fontsize=9)
    panels[0].set_ylabel("block", fontsize=9)
    bar = figure.colorbar(ScalarMappable(scale, _COLOURS), ax=panels, pad=0.01, aspect=30)
    bar.set_label("nats lost, this site alone", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    with replacing(path) as partial:
        FigureCanvasAgg(figure).print_figure(partial, dpi=160, format="png", facecolor="white")


def _draw(axes: Axes, grid: Grid, columns: Sequence[str], scale: LogNorm) -> None:
    values = np.array([[row.get(column, np.nan) for column in columns] for row in grid.values()])
    axes.imshow(np.ma.masked_invalid(np.maximum(values, scale.vmin or 0)), cmap=_COLOURS, norm=scale, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, fontsize=8, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(grid)), list(grid), fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if _is_dark(value, scale) else "#222222"
            axes.text(column, row, format_error(value), ha="center", va="center", fontsize=7, color=colour)


def _columns(*grids: Grid) -> list[str]:
    return list(dict.fromkeys(column for grid in grids for row in grid.values() for column in row))


def _scale(grids: Iterable[Grid]) -> LogNorm:
    """Colours of all positive errors, over six decades at most."""
    found = [value for grid in grids for row in grid.values() for value in row.values() if value > 0] or [1.0]
    low, high = max(min(found), _SPAN * max(found)), max(found)
    return LogNorm(low if low < high else high / 10, high, clip=True)


def _cell(value: float | None, width: int, scale: LogNorm) -> Text:
    if value is None:
        return Text(_MISSING, justify="center")
    red, green, blue = (round(255 * part) for part in _colour(value, scale)[:3])
    ink = "white" if _is_dark(value, scale) else "black"
    return Text(f" {format_error(value)} ".center(width), style=f"{ink} on rgb({red},{green},{blue})")


def _colour(value: float, scale: LogNorm) -> tuple[float, float, float, float]:
    return _COLOURS(float(scale(max(value, scale.vmin or 0))))


def _is_dark(value: float, scale: LogNorm) -> bool:
    red, green, blue, _ = _colour(value, scale)
    return 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
