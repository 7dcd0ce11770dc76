"""What of one model can be made smaller, as the command line prints it."""

from collections.abc import Iterator

from rich.table import Table

from objectives.cost import CostModel
from search.targets import format_count, format_kept, reach_of
from spaces.sites import Site, Space

_COUNTED = {
    "query_key": "width per head", "value_output": "width per head", "heads": "heads", "ffn_hidden": "neurons", "rank": "rank",
}  # fmt: skip


def describe_model(name: str, space: Space, costs: CostModel) -> Iterator[Table | str]:
    """Tables and lines: the reachable range, the sites, and what is not offered with the reason."""
    yield f"[bold]{name}[/bold], space {space.name}: {len(space.sites)} sites in {len(space.branches)} branches"
    yield _reach(space, costs)
    yield _sites(space, costs)
    if space.skipped:
        yield _skipped(space)


def _reach(space: Space, costs: CostModel) -> Table:
    table = Table(title="reachable", title_justify="left")
    for column in ("cost", "dense", "smallest", "keeps"):
        table.add_column(column, justify="left" if column == "cost" else "right")
    for cost, (least, dense) in reach_of(costs, space).items():
        table.add_row(
            "MACs" if cost == "macs" else "parameters", format_count(dense), format_count(least), format_kept(least / dense)
        )
    return table


def _sites(space: Space, costs: CostModel) -> Table:
    table = Table(title="sites", title_justify="left")
    for column in ("site", "operator", "size counts", "dense", "choices", "can save of MACs"):
        table.add_column(column, justify="right" if column in ("dense", "can save of MACs") else "left", no_wrap=True)
    for rivals in space.branches.values():
        for operator in rivals:
            for site in operator.sites:
                least = costs.count(space.identity().replace({site.name: site.choices[0]}), "macs")
                saved = f"{1 - least / costs.dense['macs']:.1%}"
                table.add_row(site.name, operator.name, _COUNTED[site.kind], str(site.dense), _choices(site), saved)
    return table


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
