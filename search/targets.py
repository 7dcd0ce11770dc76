"""Budgets: what `flops=50%` means for one model, and whether it can be reached."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

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
    """

    text: str
    cost: Cost
    limit: float


Reach = dict[Cost, tuple[int, int]]


def reach_of(costs: CostModel, space: Space) -> Reach:
    """Cost -> (smallest allocation's, dense model's)."""
    least = {cost: space.smallest(lambda allocation, cost=cost: costs.count(allocation, cost)) for cost in COSTS}  # type: ignore[misc]
    return {cost: (costs.count(least[cost], cost), costs.dense[cost]) for cost in COSTS}


def parse_targets(texts: Sequence[str], reach: Reach) -> tuple[Target, ...]:
    """Targets such as ``flops=50%``, ``flops=2.3G`` (MACs) or ``params=11M``; one text may hold several, with commas.

    Raises:
        TargetError: malformed, given twice, or outside what the space can reach.
    """
    targets = tuple(_parse(part, reach) for text in texts for part in text.split(","))
    names = [target.cost for target in targets]
    for cost in names:
        if names.count(cost) > 1:
            raise TargetError(f"two targets for {cost}: {', '.join(target.text for target in targets)}")
    for target in targets:
        _check_reachable(target, reach)
    return targets


def limits_of(targets: Sequence[Target]) -> dict[Cost, float]:
    """Cost -> its bound, in MACs or parameters."""
    return {target.cost: target.limit for target in targets}


def recipe_limits(targets: Sequence[Target], costs: CostModel) -> dict[Cost, float]:
    """The budget of recipes: that of the search, or half of the MACs where it has none."""
    return limits_of(targets) or {"macs": costs.dense["macs"] / 2}


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
    """Raise unless one allocation keeps all targets at once.

    Raises:
        TargetError: there is none.
    """
    limits = limits_of(targets)
    if targets and costs.load(space.smallest(lambda allocation: costs.load(allocation, limits)), limits) > 1:
        raise TargetError(
            f"no allocation keeps {' and '.join(target.text for target in targets)} at once in space {space.name!r}"
        )


def _parse(text: str, reach: Reach) -> Target:
    match = _PATTERN.fullmatch(text)
    if match is None or match[1].lower() not in _NAMES:
        raise TargetError(f"target {text!r} is not understood: write flops=50%, flops=2.3G (MACs) or params=11M")
    cost, number, unit = _NAMES[match[1].lower()], float(match[2]), match[3].upper()
    limit = reach[cost][1] * number / 100 if unit == "%" else number * _UNITS[unit]
    return Target(text=text.strip(), cost=cost, limit=limit)


def _check_reachable(target: Target, reach: Reach) -> None:
    least, dense = reach[target.cost]
    if least <= target.limit <= dense:
        return
    name = "MACs" if target.cost == "macs" else "parameters"
    raise TargetError(
        f"target {target.text!r} is {format_count(target.limit)} {name}, but this space reaches from "
        f"{format_count(least)} ({least / dense:.1%}) to {format_count(dense)} (100%, the dense model)"
    )
