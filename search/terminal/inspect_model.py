"""What of one model can be made smaller, and what that costs, as the command line prints it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from objectives.cost.check import check_count
from objectives.cost.closed_form import CostModel, cost_model
from objectives.cost.spec import COSTS, MAIN
from objectives.dense_model import DenseModel, load_dense
from objectives.profile import Profile
from objectives.units import format_kept
from search.budgets.reach import reach_of
from search.config import SearchConfig
from search.fidelity.judge import tell_found
from search.report.heat_map import heat_table, write_heat_maps
from search.report.site_grid import SHARES, conditions, format_error
from search.run.continuation import check_same_model
from search.run.directory import default_output, make_directory
from search.terminal.frame_tables import frame_tables
from spaces.models.create import create_model, preprocessing, weights_of
from spaces.operators.registry import KINDS
from spaces.sites import Site, Space
from spaces.vit import describe


class Watcher(Protocol):
    """Whoever waits for an inspection."""

    def stage(self, what: str, done: int, total: int) -> None: ...

    def say(self, text: str) -> None: ...

    def notice(self, text: str) -> None: ...


def describe_model(config: SearchConfig, watcher: Watcher) -> Iterator[Table | str]:
    """Tables and lines: the reachable range, the sites, and what is not offered with the reason.

    Raises:
        CompressionError: what a launch would refuse of the model, too.
    """
    model = create_model(config.model)
    watcher.say(f"weights: {weights_of(model)}")
    space = describe(model, config.study.space, config.study.multiple)
    preprocessing(model, config.model)
    costs = cost_model(model, space)
    check_count(model, costs)
    tokens = f", tokens of {len(space.tokens)} blocks" if space.tokens else ""
    yield f"{config.model.model}, space {space.name}: {len(space.sites)} sites in {len(space.branches)} branches{tokens}"
    yield _reach(space, costs)
    yield _sites(space, costs)
    if space.skipped:
        yield _skipped(space)


def inspect_profile(config: SearchConfig, watcher: Watcher) -> Iterator[Table | str]:
    """Measure the sensitivity profile, or read it; tables and lines, the last of which says where the picture is.

    Factors, profile and picture are kept in the run directory, where a launch with the same options finds them. What is read of
    the data is said, and what is odd about it noticed.

    Raises:
        CompressionError: no images, or anything else that the user can put right.
    """
    directory = Path(config.study.output or default_output(config))

    def accept(dense: DenseModel) -> None:
        tell_found(dense.data, watcher.say, watcher.notice)
        check_same_model(directory, dense.fingerprint)
        watcher.say(f"weights: {weights_of(dense.model)}")
        check_count(dense.model, dense.counted)
        make_directory(directory)

    if config.machines.threads is not None:
        torch.set_num_threads(config.machines.threads)
    dense = load_dense(config.objective(directory), watcher.stage, accept)
    profile, space = dense.profile, dense.space
    title = f"{config.model.model}, space {space.name}: {conditions(profile)}"
    write_heat_maps(directory / "profile.png", profile, space, title)
    yield title
    yield _errors(profile, space, dense.costs)
    if profile.measured:
        yield _agreement(profile)
    yield heat_table(profile.errors, space, SHARES[1])
    yield from frame_tables(dense.frames, space, dense.counted, profile.errors)
    yield f"picture: {directory / 'profile.png'}"


def _errors(profile: Profile, space: Space, costs: CostModel) -> Table:
    """A row per site: size, errors and what is saved at every share."""
    table = Table(
        title="nats lost with one site alone cut to a share of it", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.caption, table.caption_justify = "closed: closed form; corrected: by measurements (* at this very size)", "left"
    table.add_column("site", no_wrap=True)
    for share in SHARES:
        for column in ("size", "closed", "corrected", MAIN.word):
            table.add_column(f"{100 * share:.0f} %\n{column}", justify="right", no_wrap=True)
    for site in space.sites:
        row = []
        for size in map(site.nearest, SHARES):
            closed, corrected = (format_error(errors[site.name][size]) for errors in (profile.closed, profile.errors))
            star = "*" if size in profile.measured.get(site.name, {}) else ""
            row += [str(size), closed, f"{corrected}{star}", f"−{_saved(costs, space, site, size):.1%}"]
        table.add_row(site.name, *row)
    return table


def _agreement(profile: Profile) -> str:
    ratios = [
        value / profile.closed[name][size] for name, measured in profile.measured.items() for size, value in measured.items()
    ]
    low, middle, high = np.quantile(ratios, (0.1, 0.5, 0.9))
    spread = f"×{middle:.2f} in the median, ×{low:.2f} to ×{high:.2f} in the middle 80 %"
    return f"measured over closed form, {len(ratios)} sizes: {spread}"


def _reach(space: Space, costs: CostModel) -> Table:
    table = Table(title="reachable", title_justify="left")
    for column in ("cost", "dense", "smallest", "keeps"):
        table.add_column(column, justify="left" if column == "cost" else "right")
    for cost, (least, dense) in reach_of(costs, space).items():
        spec = COSTS[cost]
        table.add_row(spec.word, spec.format(dense), spec.format(least), format_kept(least / dense))
    return table


def _sites(space: Space, costs: CostModel) -> Table:
    table = Table(title="sites", title_justify="left")
    saving = f"can save of {MAIN.word}"
    for column in ("site", "operator", "size counts", "dense", "choices", saving):
        table.add_column(column, justify="right" if column in ("dense", saving) else "left", no_wrap=True)
    for rivals in space.branches.values():
        for operator in rivals:
            for site in operator.sites:
                saved = f"{_saved(costs, space, site, site.choices[0]):.1%}"
                table.add_row(site.name, operator.name, KINDS[site.kind].counts, str(site.dense), _choices(site), saved)
    for block, site in enumerate(space.tokens):
        saved = f"{_saved_by_merging(costs, space, block):.1%}"
        table.add_row(site.name, "merge", "patch tokens", str(site.dense), _choices(site), saved)
    return table


def _saved_by_merging(costs: CostModel, space: Space, block: int) -> float:
    """Share of the main cost that is saved where one block merges as much as it may, and no other one merges more."""
    counts = list(space.schedule(space.identity()))
    least = 0 if space.tokens[block].choices[0] == 0 else -(-counts[block] // 2)
    counts[block:] = [least] * (len(counts) - block)
    return 1 - costs.within(tuple(counts)).base[MAIN.name] / costs.dense[MAIN.name]


def _saved(costs: CostModel, space: Space, site: Site, size: int) -> float:
    """Share of the main cost that one site alone saves at a size."""
    return 1 - costs.count(space.identity().replace({site.name: size}), MAIN.name) / costs.dense[MAIN.name]


def _choices(site: Site) -> str:
    sizes = site.choices
    if len(sizes) <= 4:
        return ", ".join(map(str, sizes))
    return f"{sizes[0]}, {sizes[1]} … {sizes[-2]}, {sizes[-1]} ({len(sizes)})"


def _skipped(space: Space) -> Table:
    table = Table(title="not offered", title_justify="left")
    table.add_column("place")
    table.add_column("why")
    reasons: dict[str, list[str]] = {}
    for entry in space.skipped:
        reasons.setdefault(entry.reason, []).append(entry.name)
    for reason, names in reasons.items():
        table.add_row(names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else ""), reason)
    return table
