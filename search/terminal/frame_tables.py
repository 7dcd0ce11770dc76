"""What merging tokens and leaving out branches loses, as the command line prints it."""

from collections.abc import Iterator
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.table import Table

from objectives.cost.closed_form import CostModel
from objectives.cost.spec import MAIN
from objectives.frames import MeasuredFrames
from objectives.profile import Errors
from search.budgets.knapsack import Knapsack
from search.report.site_grid import format_error
from spaces.errors import AllocationError
from spaces.sites import Space


def frame_tables(frames: MeasuredFrames, space: Space, costs: CostModel, errors: Errors) -> Iterator[Table | str]:
    """Tables of schedules and of branches, and whether merging tokens pays.

    Args:
        frames: of the space.
        space: that was searched, or is to be.
        costs: counted ones of it.
        errors: of its sites.
    """
    if len(frames.schedules) > 1:
        alone = _alone(frames, space, costs, errors)
        yield _schedules(frames, costs, alone)
        yield _verdict(frames, costs, alone)
    if frames.dropped:
        yield _dropped(frames, space, costs)


def format_schedule(schedule: tuple[int, ...]) -> str:
    """(16, 16, 12, 0) -> '16×2 12 0'."""
    runs = ((count, len(list(group))) for count, group in groupby(schedule))
    return " ".join(f"{count}×{blocks}" if blocks > 1 else str(count) for count, blocks in runs)


def _alone(frames: MeasuredFrames, space: Space, costs: CostModel, errors: Errors) -> dict[tuple[int, ...], float | None]:
    """What the widths of least error lose, no token merged, at the MACs of every schedule; None where they cannot be so few."""
    knapsack = Knapsack(space, costs, errors)

    def lost(limit: float) -> float | None:
        try:
            allocation = knapsack.allocate({MAIN.name: limit})
        except AllocationError:
            return None
        return sum(errors[site.name][allocation[site.name]] for site in space.sites)

    return {schedule: lost(_macs(costs, schedule)) for schedule in frames.schedules}


def _schedules(frames: MeasuredFrames, costs: CostModel, alone: dict[tuple[int, ...], float | None]) -> Table:
    table = Table(title="nats lost with tokens merged alone", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.caption = f"measured on {frames.images} calibration images; widths: those of least error at the same {MAIN.word}"
    table.caption_justify = "left"
    table.add_column("patch tokens that leave each block")
    for column in (f"{MAIN.word} kept", "nats", "widths alone"):
        table.add_column(column, justify="right", no_wrap=True)
    for schedule, error in frames.schedules.items():
        kept, other = _kept(costs, _macs(costs, schedule)), alone[schedule]
        table.add_row(format_schedule(schedule), kept, format_error(error), "–" if other is None else format_error(other))
    return table


def _verdict(frames: MeasuredFrames, costs: CostModel, alone: dict[tuple[int, ...], float | None]) -> str:
    """Whether some schedule loses less than widths of the same cost do, and which one gains most."""
    known = {schedule: other for schedule, other in alone.items() if other and frames.schedules[schedule]}
    best = min(known, key=lambda schedule: frames.schedules[schedule] / known[schedule], default=None)
    if best is None or frames.schedules[best] >= known[best]:
        return f"merging tokens: alone it loses more than widths do at the same {MAIN.word}; the search weighs both together"
    return (
        f"merging tokens: {_kept(costs, _macs(costs, best))} of {MAIN.word} at {format_error(frames.schedules[best])} nats; "
        f"widths alone: {format_error(known[best])}"
    )


def _dropped(frames: MeasuredFrames, space: Space, costs: CostModel) -> Table:
    table = Table(title="nats lost without branches", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.caption, table.caption_justify = "each without those above it, too: measured together", "left"
    table.add_column("left out", no_wrap=True)
    for column in (f"{MAIN.word} kept", "nats"):
        table.add_column(column, justify="right", no_wrap=True)
    allocation, sites = space.lossless(), {site.branch: site.name for site in space.sites if site.kind == "branch"}
    for branch, error in frames.dropped.items():
        allocation = allocation.replace({sites[branch]: 0})
        table.add_row(branch, _kept(costs, costs.count(allocation, MAIN.name)), format_error(error))
    return table


def _macs(costs: CostModel, schedule: tuple[int, ...]) -> float:
    """With all widths dense."""
    return costs.within(schedule).base[MAIN.name]


def _kept(costs: CostModel, macs: float) -> str:
    return f"{100 * macs / costs.dense[MAIN.name]:.1f} %"
