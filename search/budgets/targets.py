"""Budgets: what `flops=50%` or `latency=8ms` means for one model, and whether it can be reached."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from objectives.cost.closed_form import Cost, CostModel
from search.units import format_cost
from spaces.errors import TargetError
from spaces.sites import Space

_NAMES: dict[str, Cost] = {"flops": "macs", "macs": "macs", "params": "params", "latency": "latency"}
_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_UNITS: dict[Cost, dict[str, float]] = {"macs": _COUNTS, "params": _COUNTS, "latency": {"s": 1.0, "ms": 1e-3, "us": 1e-6}}
_PATTERN = re.compile(r"\s*(\w+)\s*=\s*([0-9]*\.?[0-9]+)\s*(%|[a-z]*)\s*", re.IGNORECASE)

_NOT_UNDERSTOOD = "target {text!r} is not understood: write flops=50%, flops=2.3G (MACs), params=11M or latency=8ms"


@dataclass(frozen=True, kw_only=True)
class Target:
    """An upper bound on what is kept of one cost.

    Attributes:
        text: as the user wrote it.
        cost: macs, params or latency.
        limit: the bound, in MACs, parameters or seconds.
        group: bounds of one group are kept together; every group is a budget of its own.
    """

    text: str
    cost: Cost
    limit: float
    group: int = 0


Reach = dict[Cost, tuple[float, float]]


def reach_of(costs: CostModel, space: Space) -> Reach:
    """Cost -> (smallest allocation's, dense model's)."""
    least = {cost: space.smallest(lambda allocation, cost=cost: costs.count(allocation, cost)) for cost in costs.names}  # type: ignore[misc]
    return {cost: (costs.count(least[cost], cost), costs.dense[cost]) for cost in costs.names}


def parse_targets(texts: Sequence[str], reach: Reach, later: Collection[Cost] = ()) -> tuple[Target, ...]:
    """Targets such as ``flops=50%``, ``flops=2.3G`` (MACs), ``params=11M`` or ``latency=8ms``.

    Every text is a budget of its own; ``flops=50%,params=11M`` are to be kept together.

    Args:
        texts: of the user.
        reach: of the costs that are known.
        later: costs that will be known; bounds on them are checked for their form, and left out.

    Raises:
        TargetError: malformed, one cost twice in a text, of a cost that is not known, or outside what the space can reach.
    """
    targets = tuple(_parse(part, reach, group) for group, text in enumerate(texts) for part in text.split(","))
    for text, group in zip(texts, _groups(targets), strict=True):
        if len({target.cost for target in group}) < len(group):
            raise TargetError(f"two bounds for one cost in {text!r}: write separate budgets as --target flops=50% flops=30%")
    known = tuple(target for target in targets if target.cost not in later)
    for target in known:
        _check_reachable(target, reach)
    return known


def budgets_of(targets: Sequence[Target]) -> list[dict[Cost, float]]:
    """Of every group, cost -> its bound, in MACs, parameters or seconds."""
    return [{target.cost: target.limit for target in group} for group in _groups(targets)]


def names_of(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The targets of pareto.json as text, one for every group: bounds that are kept together are joined."""
    groups = groupby(entries, key=lambda entry: entry["group"])
    return [" and ".join(entry["text"] for entry in group) for _, group in groups]


def recipe_budgets(targets: Sequence[Target], costs: CostModel) -> list[dict[Cost, float]]:
    """The budgets of recipes: those of the search, less their bounds on latency, or half of the MACs where it has none."""
    counted = [target for target in targets if target.cost != "latency"]
    return budgets_of(counted) or ([] if targets else [{"macs": costs.dense["macs"] / 2}])


def check_recipes(names: Sequence[str], texts: Sequence[str]) -> None:
    """Raise where recipes would be given a bound on latency alone.

    Raises:
        TargetError: there is such a target.
    """
    for text in texts:
        if names and all(part.strip().lower().startswith("latency") for part in text.split(",")):
            raise TargetError(
                f"recipe {names[0]!r} keeps bounds on MACs or parameters, not on latency: write --target flops=50%,{text}"
            )


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
        raise TargetError(_NOT_UNDERSTOOD.format(text=text))
    cost, number, unit = _NAMES[match[1].lower()], float(match[2]), match[3].lower()
    if unit != "%" and unit not in _UNITS[cost]:
        raise TargetError(_NOT_UNDERSTOOD.format(text=text))
    limit = reach.get(cost, (0.0, math.nan))[1] * number / 100 if unit == "%" else number * _UNITS[cost][unit]
    return Target(text=text.strip(), cost=cost, limit=limit, group=group)


def _check_reachable(target: Target, reach: Reach) -> None:
    if target.cost not in reach:
        raise TargetError(f"target {target.text!r}: this run measured no latency: search with a latency target or objective")
    least, dense = reach[target.cost]
    if least <= target.limit <= dense:
        return
    raise TargetError(
        f"target {target.text!r} is {format_cost(target.cost, target.limit)}, but this space reaches from "
        f"{format_cost(target.cost, least)} ({least / dense:.1%}) to {format_cost(target.cost, dense)} (100%, the dense model)"
    )
