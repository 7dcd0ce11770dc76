"""Budgets: what `flops=50%` means for one model, and whether it can be reached."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from objectives.cost import COSTS, Cost, CostModel
from spaces.errors import TargetError
from spaces.sites import Space

_NAMES: dict[str, Cost] = {"flops": "macs", "macs": "macs", "params": "params"}
_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_PATTERN = re.compile(r"\s*(\w+)\s*=\s*([0-9]*\.?[0-9]+)\s*(%|[KMGT]?)\s*", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Target:
    """An upper bound on what is kept of one cost.

    Attributes:
        text: as the user wrote it.
        cost: macs or params.
        limit: the bound, in MACs or parameters.
        group: bounds of one group are kept together; every group is a budget of its own.
    """

    text: str
    cost: Cost
    limit: float
    group: int = 0


Reach = dict[Cost, tuple[int, int]]


def reach_of(costs: CostModel, space: Space) -> Reach:
    """Cost -> (smallest allocation's, dense model's)."""
    least = {cost: space.smallest(lambda allocation, cost=cost: costs.count(allocation, cost)) for cost in COSTS}  # type: ignore[misc]
    return {cost: (costs.count(least[cost], cost), costs.dense[cost]) for cost in COSTS}


def parse_targets(texts: Sequence[str], reach: Reach) -> tuple[Target, ...]:
    """Targets such as ``flops=50%``, ``flops=2.3G`` (MACs) or ``params=11M``.

    Every text is a budget of its own; ``flops=50%,params=11M`` are to be kept together.

    Raises:
        TargetError: malformed, one cost twice in a text, or outside what the space can reach.
    """
    targets = tuple(_parse(part, reach, group) for group, text in enumerate(texts) for part in text.split(","))
    for text, group in zip(texts, _groups(targets), strict=True):
        if len({target.cost for target in group}) < len(group):
            raise TargetError(f"two bounds for one cost in {text!r}: write separate budgets as --target flops=50% flops=30%")
    for target in targets:
        _check_reachable(target, reach)
    return targets


def budgets_of(targets: Sequence[Target]) -> list[dict[Cost, float]]:
    """Of every group, cost -> its bound in MACs or parameters."""
    return [{target.cost: target.limit for target in group} for group in _groups(targets)]


def names_of(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The targets of pareto.json as text, one for every group: bounds that are kept together are joined."""
    groups = groupby(entries, key=lambda entry: entry["group"])
    return [" and ".join(entry["text"] for entry in group) for _, group in groups]


def recipe_budgets(targets: Sequence[Target], costs: CostModel) -> list[dict[Cost, float]]:
    """The budgets of recipes: those of the search, or half of the MACs where it has none."""
    return budgets_of(targets) or [{"macs": costs.dense["macs"] / 2}]


def format_count(value: float) -> str:
    """1234567 -> '1.23 M'."""
    for unit in ("", "K", "M", "G", "T"):
        if abs(value) < 999.5 or unit == "T":
            return f"{value:.3g} {unit}".strip()
        value /= 1000
    raise AssertionError("unreachable")


def format_kept(share: float) -> str:
    """0.5 -> '50.0 % (−50.0 %)': what is kept, and what is gone; '±' where nothing is."""
    change = f"{100 * (share - 1):+.1f}".replace("-", "−")
    return f"{share * 100:.1f} % ({'±0.0' if change[1:] == '0.0' else change} %)"


def check_jointly(targets: Sequence[Target], costs: CostModel, space: Space) -> None:
    """Raise unless one allocation keeps all bounds of a group at once.

    Raises:
        TargetError: there is none.
    """
    for group, limits in zip(_groups(targets), budgets_of(targets), strict=True):
        if costs.load(space.smallest(partial(costs.load, limits=limits)), limits) > 1:
            raise TargetError(
                f"no allocation keeps {' and '.join(target.text for target in group)} at once in space {space.name!r}"
            )


def _groups(targets: Sequence[Target]) -> list[list[Target]]:
    """Targets by group, in order."""
    return [list(group) for _, group in groupby(targets, key=lambda target: target.group)]


def _parse(text: str, reach: Reach, group: int) -> Target:
    match = _PATTERN.fullmatch(text)
    if match is None or match[1].lower() not in _NAMES:
        raise TargetError(f"target {text!r} is not understood: write flops=50%, flops=2.3G (MACs) or params=11M")
    cost, number, unit = _NAMES[match[1].lower()], float(match[2]), match[3].upper()
    limit = reach[cost][1] * number / 100 if unit == "%" else number * _UNITS[unit]
    return Target(text=text.strip(), cost=cost, limit=limit, group=group)


def _check_reachable(target: Target, reach: Reach) -> None:
    least, dense = reach[target.cost]
    if least <= target.limit <= dense:
        return
    name = "MACs" if target.cost == "macs" else "parameters"
    raise TargetError(
        f"target {target.text!r} is {format_count(target.limit)} {name}, but this space reaches from "
        f"{format_count(least)} ({least / dense:.1%}) to {format_count(dense)} (100%, the dense model)"
    )
