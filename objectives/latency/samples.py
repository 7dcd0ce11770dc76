"""Whole models that a latency table is fitted to and checked with: allocations, and schedules of tokens."""

import random
from functools import partial
from typing import get_args

from objectives.cost.closed_form import CostModel
from spaces.allocation import Allocation
from spaces.sites import DROP, Role, Space

_LOADS = (0.3, 0.5, 0.7, 0.9)  # of the way from the fewest MACs to all of them, of whole allocations
_SPREAD = 1.0  # of the proportions of random ones, in log-odds
_DROPPED = 0.2  # probability of a branch, where branches are dropped
# First block that merges and the one behind the last, as shares of the blocks; the share of tokens that is left in the end.
_SHAPES = ((0, 1, 0.8), (0, 1, 0.5), (0, 1, 0.2), (0, 0.3, 0.4), (0.5, 1, 0.4), (0, 0, 0.5), (0.4, 0.4, 0.5))


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


def schedules(space: Space) -> list[tuple[int, ...]]:
    """Schedules of several shapes and amounts, the one that merges nothing first; none where tokens cannot be merged."""
    if not space.tokens:
        return []
    shapes = (_schedule(space, *shape) for shape in ((0, 1, 1.0), *_SHAPES))
    return list(dict.fromkeys(shapes))


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
    """A random schedule, and some branches left out."""
    allocation = space.lossless()
    if space.tokens:
        start, left = rng.uniform(0, 0.8), rng.uniform(0.25, 0.9)
        shape = start, rng.uniform(start, 1), left
        allocation = allocation.replace(space.scheduled(_schedule(space, *shape)))
    drops = [site for site in space.sites if site.kind == "branch"]
    return allocation.replace({site.name: 0 for site in drops if rng.random() < _DROPPED})


def _schedule(space: Space, start: float, end: float, left: float) -> tuple[int, ...]:
    """Merges as many tokens in every block of a stretch, or as many as can be, until a share of them is left."""
    blocks, entering = len(space.tokens), space.tokens[0].dense
    first = int(start * blocks)
    steps, patches, found = max(1, round(end * blocks) - first), entering, list[int]()
    for block, site in enumerate(space.tokens):
        progress = min(1.0, max(0.0, (block + 1 - first) / steps))
        entering = max(-(-entering // 2), round(patches * (1 - (1 - left) * progress)))
        found.append(0 if site.choices[0] == 0 else entering)
    return tuple(found)
