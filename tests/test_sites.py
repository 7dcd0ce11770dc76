"""Legality, and proposals that meet their budget."""

import itertools
import random

import pytest

from spaces.allocation import Allocation
from spaces.errors import AllocationError
from spaces.sites import Operator, Site, Space


def width(name: str, branch: str, *choices: int) -> Site:
    return Site(name=name, branch=branch, kind="ffn_hidden", choices=choices)


PLAIN = Space(
    name="plain",
    branches={
        f"b{i}": (Operator(name="neurons", sites=(width(f"b{i}.hidden", f"b{i}", *range(8, 129, 8)),)),) for i in range(6)
    },
)
RANK = Site(name="b0.rank", branch="b0", kind="rank", choices=(1, 2, 8), linear=(8, 8))
RIVALS = Space(
    name="rivals",
    branches={
        "b0": (Operator(name="neurons", sites=(width("b0.hidden", "b0", 2, 4, 8),)), Operator(name="low-rank", sites=(RANK,)))
    },
)


def load(allocation: Allocation) -> float:
    return sum(allocation.values()) / (6 * 128)


@pytest.mark.parametrize("limit", [0.1, 0.33, 0.5, 0.77, 0.99])
def test_decode_meets_the_budget_from_below(limit: float) -> None:
    rng = random.Random(0)
    for _ in range(20):
        offsets = {site.name: rng.uniform(-2, 2) for site in PLAIN.sites}
        allocation = PLAIN.decode(limit, load, offsets=offsets)
        PLAIN.validate(allocation)
        assert limit - 8 / (6 * 128) < load(allocation) <= limit  # one more step of any site would be too much


def test_no_offsets_is_uniform_and_offsets_order_the_sizes() -> None:
    assert set(PLAIN.decode(0.5, load).values()) == {64}
    tilted = PLAIN.decode(0.5, load, offsets={site.name: index for index, site in enumerate(PLAIN.sites)})
    sizes = [tilted[site.name] for site in PLAIN.sites]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_the_whole_budget_is_the_identity() -> None:
    assert PLAIN.decode(1.0, load, offsets={"b0.hidden": -2.0}) == PLAIN.identity()


def test_unreachable_limit_is_refused() -> None:
    with pytest.raises(AllocationError, match=r"at most 0\.05"):
        PLAIN.decode(0.05, load)


def test_smallest_is_the_smallest_of_all() -> None:
    def cost(allocation: Allocation) -> float:
        return allocation["b0.hidden"] + RANK.share(allocation["b0.rank"]) * 3

    legal = []
    for sizes in itertools.product((2, 4, 8), (1, 2, 8)):
        allocation = Allocation(dict(zip(("b0.hidden", "b0.rank"), sizes, strict=True)))
        try:
            RIVALS.validate(allocation)
        except AllocationError:
            continue
        legal.append(allocation)
    assert len(legal) == 5  # both dense; two cuts of either operator
    assert cost(RIVALS.smallest(cost)) == min(map(cost, legal))


def test_rivals_never_act_together() -> None:
    allocation = RIVALS.decode(0.5, lambda a: a["b0.hidden"] / 8 * RANK.share(a["b0.rank"]), {"b0": "low-rank"})
    assert allocation["b0.hidden"] == 8
    assert RIVALS.operators(allocation) == {"b0": "low-rank"}
    with pytest.raises(AllocationError, match="no operator 'other'"):
        RIVALS.decode(0.5, lambda a: 2.0, {"b0": "other"})


def test_share_of_a_rank_counts_both_factors() -> None:
    """Rank 2 of an 8x8 weight: 2 x (8 + 8) of 64 weights."""
    assert RANK.share(2) == 0.5
    assert RANK.share(8) == 1.0
    assert RANK.nearest(0.3) == 1


def test_uniform_keeps_heads_whole_until_the_budget_asks_for_them() -> None:
    """One branch of 8 heads, 16 wide: widths alone go down to a quarter."""
    heads = Site(name="b.heads", branch="b", kind="heads", choices=tuple(range(1, 9)))
    widths = Site(name="b.qk", branch="b", kind="query_key", choices=(4, 8, 12, 16))
    space = Space(name="heads", branches={"b": (Operator(name="heads", sites=(heads, widths)),)})

    def share(allocation: Allocation) -> float:
        return allocation["b.heads"] * allocation["b.qk"] / 128

    assert dict(space.decode(0.5, share)) == {"b.heads": 8, "b.qk": 8}
    assert dict(space.decode(0.25, share)) == {"b.heads": 8, "b.qk": 4}
    assert share(space.decode(0.2, share)) <= 0.2


def test_the_smallest_keeps_a_branch_whose_cuts_cost_more() -> None:
    """As a latency may: two linear layers of low rank can take longer than one."""
    sites = [Site(name=f"{branch}.fc1", branch=branch, kind="rank", choices=(8, 64), linear=(64, 64)) for branch in ("a", "b")]
    space = Space(name="odd", branches={site.branch: (Operator(name="low-rank", sites=(site,)),) for site in sites})
    price = {"a.fc1": {8: 3.0, 64: 2.0}, "b.fc1": {8: 1.0, 64: 2.0}}
    found = space.smallest(lambda allocation: sum(price[name][size] for name, size in allocation.items()))
    assert dict(found) == {"a.fc1": 64, "b.fc1": 8}
