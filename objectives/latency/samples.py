"""Whole models that a latency table is fitted to and checked with: allocations, and schedules of tokens."""

import random
from functools import partial
from typing import get_args

import numpy as np

from objectives.cost.closed_form import CostModel
from spaces.allocation import Allocation
from spaces.sites import DROP, Role, Space
from spaces.tokens.schedules import Schedule, schedules

_LOADS = (0.3, 0.5, 0.7, 0.9)  # of the way from the fewest MACs to all of them, of whole allocations
_SPREAD = 1.0  # of the proportions of random ones, in log-odds
_DROPPED = 0.2  # probability of a branch, where branches are dropped
_SCHEDULES = 12  # that tell what merging takes


def allocations(space: Space, costs: CostModel, seed: int) -> list[Allocation]:
    """Whole allocations at several loads: with the same share everywhere, and with random proportions and operators.

    Half of the latter keep the same share within a branch, as searches for a latency do, and tilt between attention and FFN. As
    many have a random schedule of tokens, where they can be merged, and leave out some branches.
    """
    rng = random.Random(seed)
    found = []
    for share in _LOADS:
        share -= 0.1 * seed
        operators = {
            path: rng.choice([each.name for each in rivals if each.name != DROP]) for path, rivals in space.branches.items()
        }
        offsets = {site.name: rng.gauss(0, _SPREAD) for site in space.sites}
        tilt = {role: rng.gauss(0, 2 * _SPREAD) for role in get_args(Role)}
        level = {branch: rng.gauss(0, _SPREAD) + tilt[space.roles[branch]] for branch in space.branches}
        alike = {site.name: level[site.branch] for site in space.sites}
        decode = partial(_decoded, space, costs, share)
        whole = space.lossless()
        found += [decode(whole), decode(whole, operators, offsets), decode(whole, operators, alike)]
        found.append(decode(_reduced(space, rng), operators, offsets))
    return found


def some_schedules(space: Space) -> list[Schedule]:
    """Some of those that are offered, from the most tokens to the fewest."""
    offered = schedules(space)
    return list(dict.fromkeys(offered[round(place)] for place in np.linspace(0, len(offered) - 1, _SCHEDULES)))


def _decoded(
    space: Space,
    costs: CostModel,
    share: float,
    base: Allocation,
    operators: dict[str, str] | None = None,
    offsets: dict[str, float] | None = None,
) -> Allocation:
    """The allocation with the tokens and dropped branches of `base`, at a share of the way from its fewest MACs to its own."""
    load = partial(costs.load, limits={"macs": costs.dense["macs"]})
    gone, smallest = {branch for branch, operator in space.moved(base) if operator.name == DROP}, space.smallest(load)
    least = load(base.replace({site.name: smallest[site.name] for site in space.sites if site.branch not in gone}))
    return space.decode(least + share * (load(base) - least), load, operators, offsets, base)


def _reduced(space: Space, rng: random.Random) -> Allocation:
    """A schedule of those that are offered, and some branches left out."""
    allocation = space.lossless().replace(space.scheduled(rng.choice(schedules(space))))
    drops = [site for site in space.sites if site.kind == "branch"]
    return allocation.replace({site.name: 0 for site in drops if rng.random() < _DROPPED})
