from collections.abc import Mapping

import pytest

from objectives.cost import CostModel
from search.targets import Reach, budgets_of, check_jointly, format_count, format_kept, parse_targets, reach_of
from spaces.errors import TargetError
from spaces.sites import Operator, Site, Space

REACH: Reach = {"macs": (100_000_000, 1_000_000_000), "params": (1_000_000, 20_000_000)}


@pytest.mark.parametrize(
    ("text", "cost", "limit"),
    [
        ("flops=50%", "macs", 5e8),
        ("flops=0.5G", "macs", 5e8),
        ("macs=500m", "macs", 5e8),
        (" params = 11M ", "params", 11e6),
        ("flops=500000000", "macs", 5e8),
        ("params=100%", "params", 20e6),
    ],
)
def test_targets_are_understood(text: str, cost: str, limit: float) -> None:
    (target,) = parse_targets([text], REACH)
    assert (target.cost, target.limit) == (cost, limit)


def test_texts_are_budgets_of_their_own_and_bounds_of_one_text_are_kept_together() -> None:
    targets = parse_targets(["flops=50%", "params=11M, flops=40%", "macs=0.3G"], REACH)
    assert [(target.text, target.group) for target in targets] == [
        ("flops=50%", 0),
        ("params=11M", 1),
        ("flops=40%", 1),
        ("macs=0.3G", 2),
    ]
    assert budgets_of(targets) == [{"macs": 5e8}, {"params": 11e6, "macs": 4e8}, {"macs": 3e8}]
    assert budgets_of(()) == []


def test_two_bounds_for_one_cost_in_one_text() -> None:
    with pytest.raises(TargetError, match=r"two bounds for one cost in 'flops=50%,macs=0.4G': .* --target flops=50% flops=30%"):
        parse_targets(["params=11M", "flops=50%,macs=0.4G"], REACH)


def test_every_group_must_be_reached_jointly() -> None:
    """One branch whose two operators save one cost each: both bounds hold at once for neither."""
    thin, flat = (Site(name=f"b.{name}", branch="b", kind="ffn_hidden", choices=(1, 2)) for name in ("thin", "flat"))
    operators = Operator(name="thin", sites=(thin,)), Operator(name="flat", sites=(flat,))
    space = Space(name="odd", branches={"b": operators})
    counts = {"thin": {1: (10, 100), 2: (100, 100)}, "flat": {1: (100, 10), 2: (100, 100)}}

    def count(sizes: Mapping[str, int]) -> tuple[int, int]:
        ((name, size),) = sizes.items()
        return counts[name][size]

    costs = CostModel({"macs": 100, "params": 100}, tuple((operator, count) for operator in operators))
    reach = reach_of(costs, space)
    assert reach == {"macs": (10, 100), "params": (10, 100)}
    check_jointly(parse_targets(["flops=50%", "params=50%"], reach), costs, space)
    with pytest.raises(TargetError, match="no allocation keeps flops=50% and params=50% at once in space 'odd'"):
        check_jointly(parse_targets(["flops=90%", "flops=50%,params=50%"], reach), costs, space)


@pytest.mark.parametrize("text", ["50%", "flops", "flops=", "flops=-5%", "flops=50 %%", "speed=2", "flops=1e9", ""])
def test_malformed_targets_are_refused(text: str) -> None:
    with pytest.raises(TargetError, match="not understood"):
        parse_targets([text], REACH)


@pytest.mark.parametrize("text", ["flops=5%", "flops=200%", "params=0.5M", "flops=0%"])
def test_unreachable_targets_name_the_range(text: str) -> None:
    with pytest.raises(TargetError, match=r"reaches from .*\(\d.*%\) to .*100%"):
        parse_targets([text], REACH)


def test_numbers_read_well() -> None:
    assert [format_count(value) for value in (0, 950, 1_234_567, 4.6e9, 999_900)] == ["0", "950", "1.23 M", "4.6 G", "1 M"]
    assert format_kept(0.5) == "50.0 % (−50.0 %)"
