from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_strategies import refusal

from objectives.cost.closed_form import CostModel
from objectives.cost.spec import COSTS, Cost
from objectives.units import format_count, format_kept
from search.budgets.reach import check_jointly, reach_of, recipe_limits
from search.budgets.targets import Budget, Reach, budgets_of, check_recipes, parse_target
from spaces.errors import TargetError
from spaces.sites import Operator, Site, Space

REACH: Reach = {"macs": (100_000_000, 1_000_000_000), "params": (1_000_000, 20_000_000), "latency": (5e-3, 20e-3)}


def budgets(*texts: str, reach: Reach = REACH, later: Sequence[str] = ()) -> tuple[Budget, ...]:
    return budgets_of([parse_target(text) for text in texts], reach, later)


@pytest.mark.parametrize(
    ("text", "cost", "limit"),
    [
        ("flops=50%", "macs", 5e8),
        ("flops=0.5G", "macs", 5e8),
        ("macs=500m", "macs", 5e8),
        (" params = 11M ", "params", 11e6),
        ("flops=500000000", "macs", 5e8),
        ("params=100%", "params", 20e6),
        ("latency=8ms", "latency", 8e-3),
        (" Latency = 0.012 S", "latency", 12e-3),
        ("latency=7500us", "latency", 7.5e-3),
        ("latency=60%", "latency", 12e-3),
    ],
)
def test_targets_are_understood(text: str, cost: str, limit: float) -> None:
    assert parse_target(text).resolve(REACH).limits == {cost: limit}


@given(st.sampled_from(list(REACH)), st.integers(0, 120), st.integers(0, 3))
def test_a_share_is_one_of_the_dense_model_within_what_is_reached(cost: Cost, percent: int, spaces: int) -> None:
    least, dense = REACH[cost]
    text = f"{cost}={percent}%".replace("=", " " * spaces + "=" + " " * spaces)
    if least <= dense * percent / 100 <= dense:
        assert parse_target(text.upper()).resolve(REACH).limits == {cost: pytest.approx(dense * percent / 100)}
    else:
        with pytest.raises(TargetError, match="but this space reaches from"):
            budgets(text)


@given(st.from_regex(r"(flops|params|latency|a)=[0-9.]{1,400}(%|[a-z]{0,2})(,.*)?", fullmatch=True) | st.text(max_size=30))
def test_a_text_is_a_budget_within_reach_or_refused_in_one_line(text: str) -> None:
    if not refusal(lambda: budgets(text), TargetError):
        (budget,) = budgets(text)
        assert all(REACH[cost][0] <= limit <= REACH[cost][1] for cost, limit in budget.limits.items())


def test_texts_are_budgets_of_their_own_and_bounds_of_one_text_are_kept_together() -> None:
    found = budgets("flops=50%", "params=11M, flops=40%", "macs=0.3G")
    assert [[bound.text for bound in budget.bounds] for budget in found] == [
        ["flops=50%"],
        ["params=11M", "flops=40%"],
        ["macs=0.3G"],
    ]
    assert [budget.limits for budget in found] == [{"macs": 5e8}, {"params": 11e6, "macs": 4e8}, {"macs": 3e8}]
    assert [budget.text for budget in found] == ["flops=50%", "params=11M and flops=40%", "macs=0.3G"]
    assert budgets() == ()


def test_two_bounds_for_one_cost_in_one_text() -> None:
    with pytest.raises(TargetError, match=r"two bounds for one cost in 'flops=50%,macs=0.4G': .* --target flops=50% flops=30%"):
        parse_target("flops=50%,macs=0.4G")


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
    check_jointly(budgets("flops=50%", "params=50%", reach=reach), costs, space)
    with pytest.raises(TargetError, match="no allocation keeps flops=50% and params=50% at once in space 'odd'"):
        check_jointly(budgets("flops=90%", "flops=50%,params=50%", reach=reach), costs, space)


@pytest.mark.parametrize(
    "text",
    ["50%", "flops", "flops=", "flops=-5%", "flops=50 %%", "speed=2", "flops=1e9", "", "latency=8", "latency=8m", "flops=8ms"],
)
def test_malformed_targets_are_refused(text: str) -> None:
    with pytest.raises(TargetError, match=r"not understood: write flops=50%, flops=2.3G \(MACs\), params=11M or latency=8ms$"):
        parse_target(text)


@pytest.mark.parametrize("text", ["flops=5%", "flops=200%", "params=0.5M", "flops=0%", "latency=4ms"])
def test_unreachable_targets_name_the_range(text: str) -> None:
    with pytest.raises(TargetError, match=r"reaches from .*\(\d.*%\) to .*100%"):
        parse_target(text).resolve(REACH)


def test_numbers_read_well() -> None:
    assert [format_count(value) for value in (0, 950, 1_234_567, 4.6e9, 999_900)] == ["0", "950", "1.23 M", "4.6 G", "1 M"]
    assert format_kept(0.5) == "50.0 % (−50.0 %)"
    assert [COSTS["latency"].format_with_unit(value) for value in (1.5, 0.0082, 0.5e-3)] == ["1.5 s", "8.2 ms", "500 µs"]
    assert [COSTS["macs"].format_with_unit(4.6e9), COSTS["params"].format_with_unit(11e6)] == ["4.6 G MACs", "11 M parameters"]


def test_latency_that_is_not_known_yet_is_left_for_later_and_never_forgotten() -> None:
    counted: Reach = {"macs": REACH["macs"], "params": REACH["params"]}
    later = budgets("latency=50%", "flops=50%,latency=9ms", reach=counted, later=("latency",))
    assert [budget.limits for budget in later] == [{"macs": 5e8}]
    assert [budget.limits for budget in budgets("flops=50%,latency=9ms")] == [{"macs": 5e8, "latency": pytest.approx(9e-3)}]
    with pytest.raises(TargetError, match="'latency=50%': this run measured no latency"):
        budgets("latency=50%", reach=counted)
    with pytest.raises(TargetError, match="not understood"):
        parse_target("latency=fast")


def test_recipes_get_the_bounds_that_they_can_keep() -> None:
    costs = CostModel({"macs": 1_000_000_000, "params": 20_000_000, "latency": 20e-3}, ())
    joint = budgets("flops=50%,latency=9ms", "latency=8ms", "params=11M")
    assert recipe_limits(joint, costs) == [{"macs": 5e8}, {"params": 11e6}]
    assert recipe_limits(budgets("latency=8ms"), costs) == []
    assert recipe_limits((), costs) == [{"macs": 5e8}]
    check_recipes([], [parse_target("latency=8ms")], alone=False)
    check_recipes(["vtp"], [parse_target("flops=50%,latency=9ms")], alone=False)
    with pytest.raises(
        TargetError, match=r"recipe 'vtp' keeps bounds on MACs or parameters, not on latency: .* flops=50%,latency=8ms"
    ):
        check_recipes(["vtp", "gohsp"], [parse_target("flops=50%"), parse_target("latency=8ms")], alone=False)
    check_recipes(["vtp"], [parse_target("flops=50%,params=11M")], alone=True)
    with pytest.raises(TargetError, match=r"recipe 'vtp' keeps .*, not on latency: write --target flops=50%,params=11M$"):
        check_recipes(["vtp"], [parse_target("flops=50%, latency=9ms,params=11M")], alone=True)
