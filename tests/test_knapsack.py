"""The allocation of least error on a budget, against brute force on small made-up spaces."""

import itertools
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_diag
from torch import Tensor, nn

from objectives.cost.closed_form import CostModel, cost_model
from objectives.cost.spec import COSTS, Cost
from objectives.profile import Errors
from search.budgets.knapsack import Knapsack
from spaces.allocation import Allocation
from spaces.errors import AllocationError
from spaces.factors import Factors
from spaces.sites import Operator, Site, Space
from spaces.vit import describe


class Clock:
    """A made-up latency: every size saves so much, whatever the tokens."""

    def __init__(self, dense: float, sizes: Mapping[str, Mapping[int, float]]) -> None:
        self.dense, self.sizes = dense, sizes

    def whole(self, schedule: tuple[int, ...]) -> float:
        return self.dense

    def saved(self, schedule: tuple[int, ...], operator: Operator, sizes: Mapping[str, int]) -> float:
        return sum(self.sizes[site.name].get(sizes[site.part], 0.0) for site in operator.sites)


def allocate(space: Space, costs: CostModel, limits: Mapping[Cost, float], errors: Errors) -> Allocation:
    return Knapsack(space, costs, errors).allocate(limits)


class Made:
    """A made-up space: branch -> rival operators -> sites -> sizes.

    Of what its dense branch costs, an operator costs the product of the shares that its sites keep in MACs, and their mean in
    parameters. Errors fall with every size.
    """

    def __init__(self, seed: int, branches: Sequence[Sequence[Sequence[tuple[int, ...]]]], convex: bool) -> None:
        self.rng = random.Random(seed)
        self.errors: dict[str, dict[int, float]] = {}
        self.weights = {
            f"b{index}": (self.rng.randint(500, 2000), self.rng.randint(500, 2000)) for index in range(len(branches))
        }
        offered = {}
        for branch, rivals in enumerate(branches):
            offered[f"b{branch}"] = tuple(self._operator(branch, rival, sizes, convex) for rival, sizes in enumerate(rivals))
        self.space = Space(name="made", branches=offered)
        operators = tuple((operator, self._count(operator)) for rivals in offered.values() for operator in rivals)
        macs, params = (sum(weights) for weights in zip(*self.weights.values(), strict=True))
        self.costs = CostModel({"macs": macs, "params": params}, operators)

    def _operator(self, branch: int, rival: int, sizes: Sequence[tuple[int, ...]], convex: bool) -> Operator:
        sites = []
        for number, choices in enumerate(sizes):
            name = f"b{branch}.r{rival}s{number}"
            sites.append(Site(name=name, branch=f"b{branch}", kind="ffn_hidden", choices=choices))
            steps = sorted((self.rng.random() for _ in choices[1:]), reverse=True)
            if not convex:
                self.rng.shuffle(steps)
            lost = [sum(steps[index:]) for index in range(len(choices))]
            scale = 10 ** self.rng.uniform(-1, 1)
            self.errors[name] = {size: scale * error for size, error in zip(choices, lost, strict=True)}
        return Operator(name=f"r{rival}", sites=tuple(sites))

    def _count(self, operator: Operator) -> Callable[[Mapping[str, int]], tuple[int, int]]:
        macs, params = self.weights[operator.sites[0].branch]
        dense = operator.dense_sizes

        def count(sizes: Mapping[str, int]) -> tuple[int, int]:
            shares = [size / dense[part] for part, size in sizes.items()]
            return round(macs * math.prod(shares)), round(params * statistics.mean(shares))

        return count

    def error(self, allocation: Allocation) -> float:
        return sum(self.errors[name][size] for name, size in allocation.items())

    def share(self, share: float) -> dict[Cost, float]:
        return {"macs": share * self.costs.dense["macs"]}

    @cached_property
    def everything(self) -> NDArray[np.float64]:
        """MACs, parameters and error of every allocation of the space, [allocations, 3]."""
        totals = np.zeros((1, 3))
        for rivals in self.space.branches.values():
            totals = (totals[:, None] + np.concatenate([self.options(operator) for operator in rivals])).reshape(-1, 3)
        return totals

    def options(self, operator: Operator) -> NDArray[np.float64]:
        """MACs, parameters and error of a branch with every combination of an operator's sizes, [combinations, 3]."""
        rows = []
        for sizes in itertools.product(*(site.choices for site in operator.sites)):
            named = dict(zip(operator.sites, sizes, strict=True))
            counted = self._count(operator)({site.part: size for site, size in named.items()})
            rows.append((*counted, sum(self.errors[site.name][size] for site, size in named.items())))
        return np.array(rows)

    def best(self, limits: Mapping[Cost, float]) -> float:
        """Least error of all allocations within the limits; infinite if there is none."""
        kept = np.all([self.everything[:, list(COSTS).index(cost)] <= limit for cost, limit in limits.items()], axis=0)
        return float(self.everything[kept, 2].min(initial=math.inf))


SINGLE: list[list[list[tuple[int, ...]]]] = [[[(1, 2, 3, 4, 5)]], [[(2, 4, 6, 8)]], [[(1, 3, 5, 7)]], [[(2, 3, 4, 6)]]]


@pytest.mark.parametrize("seed", range(8))
def test_convex_errors_give_the_optimum_up_to_one_step(seed: int) -> None:
    """Nothing within the budget less the largest step between two sizes is better."""
    made = Made(seed, SINGLE, convex=True)
    step = max(np.diff(made.options(operator)[:, 0]).max() for (operator,) in made.space.branches.values())
    for share in (0.45, 0.5, 0.65, 0.8, 0.95):
        limits = made.share(share)
        found = allocate(made.space, made.costs, limits, made.errors)
        made.space.validate(found)
        assert made.costs.costs(found)["macs"] <= limits["macs"]
        assert made.best(limits) - 1e-9 <= made.error(found) <= made.best({"macs": limits["macs"] - step}) + 1e-9


def drawn(seed: int, convex: bool) -> Made:
    """Two to four branches of one operator or two, each with one site or two of two to four sizes."""
    rng = random.Random(seed)

    def sizes() -> tuple[int, ...]:
        return tuple(sorted(rng.sample(range(1, 17), rng.randint(2, 4))))

    def rivals() -> list[list[tuple[int, ...]]]:
        return [[sizes() for _ in range(rng.choice((1, 1, 2)))] for _ in range(rng.choice((1, 1, 2)))]

    return Made(seed, [rivals() for _ in range(rng.randint(2, 4))], convex)


PERCENT = st.integers(1, 100)  # budgets are rounded to whole MACs and parameters, as costs are


@given(st.integers(0, 10**6), st.booleans(), PERCENT, st.sampled_from(("macs", "params")))
def test_no_budget_is_exceeded_and_none_is_refused_that_can_be_kept(seed: int, convex: bool, percent: int, cost: Cost) -> None:
    made = drawn(seed, convex)
    limits: dict[Cost, float] = {cost: made.costs.dense[cost] * percent // 100}
    best = made.best(limits)
    if best == math.inf:
        with pytest.raises(AllocationError):
            allocate(made.space, made.costs, limits, made.errors)
        return
    found = allocate(made.space, made.costs, limits, made.errors)
    made.space.validate(found)
    assert made.costs.load(found, limits) <= 1
    assert made.error(found) >= best - 1e-9


@given(st.integers(0, 10**6), st.booleans(), st.lists(PERCENT, min_size=2, max_size=6).map(sorted))
def test_one_branch_is_solved_as_by_brute_force_and_a_larger_budget_never_loses_more(
    seed: int, convex: bool, percents: list[int]
) -> None:
    made = Made(seed, [[[tuple(range(1, 9))]]], convex)
    budgets: list[dict[Cost, float]] = [{"macs": made.costs.dense["macs"] * percent // 100} for percent in percents]
    reached = [limits for limits in budgets if made.best(limits) < math.inf]
    errors = [made.error(allocate(made.space, made.costs, limits, made.errors)) for limits in reached]
    assert errors == pytest.approx([made.best(limits) for limits in reached])
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("convex", [True, False])
def test_the_optimum_is_found_nearly_always(convex: bool) -> None:
    """In 95 of 100 spaces with rivals and several sites, and in the mean within 2 % of it; never outside the limits."""
    ratios = []
    for seed, bounded in itertools.product(range(200), (("macs",), ("params",), ("macs", "params"))):
        made, rng = drawn(seed, convex), random.Random(seed)
        least = made.everything.min(0)
        limits: dict[Cost, float] = {}
        for cost in bounded:
            low = float(least[list(COSTS).index(cost)])
            limits[cost] = low + rng.uniform(0.05, 0.95) * (made.costs.dense[cost] - low)
        try:
            found = allocate(made.space, made.costs, limits, made.errors)
        except AllocationError:
            assert made.best(limits) == math.inf
            continue
        made.space.validate(found)
        assert made.costs.load(found, limits) <= 1
        error, best = made.error(found), made.best(limits)
        assert error >= best - 1e-9
        ratios.append(error / best if error > best + 1e-9 else 1.0)
    assert len(ratios) > 500
    assert sum(ratio == 1 for ratio in ratios) >= 0.95 * len(ratios)
    assert statistics.mean(ratios) < 1.02


def least_error(made: Made, limits: Mapping[Cost, float]) -> float:
    """Of all allocations within the limits, by integer programming (HiGHS): for spaces too large to be gone through."""
    branches = [np.concatenate([made.options(operator) for operator in rivals]) for rivals in made.space.branches.values()]
    options, one_of_each = np.concatenate(branches), block_diag([np.ones((1, len(branch))) for branch in branches])
    kept = [LinearConstraint(options[None, :, list(COSTS).index(cost)], -np.inf, limit) for cost, limit in limits.items()]
    solved = milp(
        options[:, 2],
        constraints=[LinearConstraint(one_of_each, 1, 1), *kept],
        integrality=np.ones(len(options)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    assert solved.status == 0
    return float(solved.fun)


def test_a_large_space_is_solved_within_a_percent_of_the_optimum() -> None:
    """As many branches as eight blocks have, with two sites or one."""
    ratios = []
    for seed in range(3):
        made = Made(seed, [[[tuple(range(1, 7))] * 2], [[tuple(range(1, 13))]]] * 8, convex=True)
        dense = made.costs.dense
        for limits in (made.share(0.3), made.share(0.6), {"macs": 0.5 * dense["macs"], "params": 0.6 * dense["params"]}):
            found = allocate(made.space, made.costs, limits, made.errors)
            assert made.costs.load(found, limits) <= 1
            ratios.append(made.error(found) / least_error(made, limits))
    assert min(ratios) >= 1 - 1e-6
    assert statistics.mean(ratios) < 1.01
    assert max(ratios) < 1.04


@pytest.mark.parametrize("bounded", [("macs",), ("macs", "params")], ids=["MACs", "both"])
def test_one_choice_serves_several_shares(bounded: tuple[Cost, ...]) -> None:
    """Every row keeps its share of the limits, wastes less than half of it, and is what this share alone would get."""
    shares = [1.0, 0.55, 0.8, 0.7]
    for seed in range(20):
        made = Made(seed, [[[tuple(range(1, 7))] * 2], [[tuple(range(1, 13))], [tuple(range(2, 15, 3))]]] * 3, convex=True)
        knapsack = Knapsack(made.space, made.costs, made.errors)
        limits: dict[Cost, float] = {cost: 0.6 * made.costs.dense[cost] for cost in bounded}
        multipliers = np.random.default_rng(seed).normal(0, 1, len(knapsack.sites))
        chosen = knapsack.choose(limits, multipliers[None], np.array([shares]))[0]
        assert chosen.shape == (4, 6)
        for options, share in zip(chosen, shares, strict=True):
            load = made.costs.load(knapsack.allocation(options), limits)
            assert 0.5 * share < load <= share * (1 + 1e-9)
            assert (knapsack.choose(limits, multipliers[None], np.array([[share]]))[0, 0] == options).all()
        weighted = knapsack.features(chosen) @ np.exp(multipliers)
        assert (np.diff(weighted[np.argsort(shares)]) <= 1e-9).all(), "more budget, less error"


@pytest.mark.parametrize("bounded", [("macs",), ("macs", "params")], ids=["MACs", "both"])
def test_rows_that_are_solved_together_are_solved_each_by_itself(bounded: tuple[Cost, ...]) -> None:
    """To the last bit: a study that was read from its journal decodes all its trials together, another one each in its time."""
    branches = [[[tuple(range(1, 7))] * 2], [[tuple(range(1, 13))], [tuple(range(2, 15, 3))]]] * 3
    for seed in range(10):
        made, rng = Made(seed, branches, convex=seed % 2 == 0), np.random.default_rng(seed)
        knapsack = Knapsack(made.space, made.costs, made.errors)
        limits: dict[Cost, float] = {cost: rng.uniform(0.5, 0.7) * made.costs.dense[cost] for cost in bounded}
        multipliers, shares = rng.normal(0, 1, (40, len(knapsack.sites))), rng.uniform(0.55, 1, 40)
        together = knapsack.solve(limits, multipliers, shares)
        for row in range(40):
            assert (knapsack.solve(limits, multipliers[row : row + 1], shares[row : row + 1])[0] == together[row]).all()
            named = dict(zip(knapsack.sites, multipliers[row].tolist(), strict=True))
            alone = knapsack.allocate({cost: shares[row] * limit for cost, limit in limits.items()}, named)
            assert knapsack.allocation(together[row]) == alone


def test_a_share_out_of_reach_is_refused() -> None:
    made = Made(0, SINGLE, convex=True)
    knapsack = Knapsack(made.space, made.costs, made.errors)
    with pytest.raises(AllocationError, match=r"no allocation of space 'made' keeps the budget \{'macs': "):
        knapsack.choose(made.share(1.0), np.zeros((1, 4)), np.array([[0.9, 0.05]]))


def test_sizes_errors_and_costs_of_options_are_those_of_their_allocation() -> None:
    for seed in range(30):
        made = drawn(seed, convex=False)
        knapsack = Knapsack(made.space, made.costs, made.errors)
        multipliers = np.random.default_rng(seed).normal(0, 1, len(knapsack.sites))
        chosen = knapsack.choose(made.costs.dense, multipliers[None], np.array([[1.0, 0.97, 0.94]]))[0]
        for sizes, errors, costs, options in zip(
            knapsack.sizes(chosen), knapsack.features(chosen), knapsack.costs(chosen), chosen, strict=True
        ):
            allocation = knapsack.allocation(options)
            made.space.validate(allocation)
            assert dict(zip(knapsack.sites, sizes.tolist(), strict=True)) == dict(allocation)
            assert errors == pytest.approx([made.errors[name][allocation[name]] for name in knapsack.sites])
            assert (knapsack.features_of(allocation) == errors).all()
            assert costs.tolist() == [made.costs.count(allocation, cost) for cost in made.costs.names]


def test_latency_is_a_third_cost_that_need_not_fall_with_every_size() -> None:
    """Against all allocations of small spaces, with joint limits.

    Never above a limit, the best more often than not, and within a tenth of it in the mean.
    """
    ratios, missed = [], 0
    for seed in range(25):
        made, rng = drawn(seed, convex=True), random.Random(seed)
        saved = {site.name: {size: rng.uniform(-1e-4, 1e-3) for size in site.choices[:-1]} for site in made.space.sites}

        costs = made.costs.with_cost("latency", 0.02, Clock(0.02, saved))
        offered = [
            [({site.name: size for site, size in zip(operator.sites, sizes, strict=True)}, operator) for operator in rivals
             for sizes in itertools.product(*(site.choices for site in operator.sites))]
            for rivals in made.space.branches.values()
        ]  # fmt: skip
        everything = []
        for options in itertools.product(*offered):
            allocation = made.space.identity().replace({name: size for sizes, _ in options for name, size in sizes.items()})
            latency = 0.02 - sum(saved[name].get(size, 0.0) for name, size in allocation.items())
            everything.append((latency, costs.count(allocation, "macs"), made.error(allocation)))
            assert costs.count(allocation, "latency") == pytest.approx(latency)
        least = min(latency for latency, _, _ in everything)
        limits: dict[Cost, float] = {
            "latency": least + rng.uniform(0.2, 0.9) * (0.02 - least),
            "macs": 0.9 * costs.dense["macs"],
        }
        best = min((e for t, m, e in everything if t <= limits["latency"] and m <= limits["macs"]), default=math.inf)
        try:
            found = allocate(made.space, costs, limits, made.errors)
        except AllocationError:
            missed += best < math.inf
            continue
        assert costs.load(found, limits) <= 1 + 1e-12
        assert made.error(found) >= best - 1e-9
        ratios.append(made.error(found) / best if best > 1e-9 else 1.0)
    assert len(ratios) > 20
    assert missed == 0
    assert statistics.median(ratios) < 1 + 1e-9
    assert statistics.mean(ratios) < 1.1


def test_a_multiplier_is_a_factor_on_the_errors_of_its_site() -> None:
    for seed in range(10):
        made = drawn(seed, convex=True)
        multipliers = dict(
            zip((site.name for site in made.space.sites), np.random.default_rng(seed).normal(0, 1, 20), strict=False)
        )
        scaled = {
            name: {size: math.exp(multipliers[name]) * error for size, error in errors.items()}
            for name, errors in made.errors.items()
        }
        limits = made.share(0.9)
        found = Knapsack(made.space, made.costs, made.errors).allocate(limits, multipliers)
        assert found == allocate(made.space, made.costs, limits, scaled)


def test_the_better_rival_is_taken_at_every_budget() -> None:
    """One branch of 100 MACs: the first operator is better at 50 and at 60, the second at 20."""
    first = Site(name="b.wide", branch="b", kind="ffn_hidden", choices=(20, 50, 60, 100))
    second = Site(name="b.rank", branch="b", kind="ffn_hidden", choices=(20, 50, 60, 100))
    operators = Operator(name="first", sites=(first,)), Operator(name="second", sites=(second,))
    space = Space(name="two", branches={"b": operators})

    def count(sizes: Mapping[str, int]) -> tuple[int, int]:
        (size,) = sizes.values()
        return size, size

    costs = CostModel({"macs": 100, "params": 100}, tuple((operator, count) for operator in operators))
    errors = {"b.wide": {20: 9.0, 50: 2.0, 60: 1.0, 100: 0.0}, "b.rank": {20: 5.0, 50: 3.0, 60: 2.5, 100: 0.0}}
    for limit, sizes in ((20, (100, 20)), (55, (50, 100)), (99, (60, 100)), (100, (100, 100))):
        found = allocate(space, costs, {"macs": limit}, errors)
        assert (found["b.wide"], found["b.rank"]) == sizes


def test_two_steps_by_hand() -> None:
    """Branches of 10 MACs at sizes 1 and 2. The first loses 5, the second 3 and the third 1: with 50 MACs two stay whole."""
    made = Made(0, [[[(1, 2)]]] * 3, convex=True)
    made.weights.update({f"b{index}": (10, 10) for index in range(3)})
    costs = CostModel(
        {"macs": 60, "params": 6}, tuple((o, lambda s: (10 * sum(s.values()), 1)) for o, _ in made.costs.operators)
    )
    errors = {f"b{index}.r0s0": {1: lost, 2: 0.0} for index, lost in enumerate((5.0, 3.0, 1.0))}
    for limit, sizes in ((60, (2, 2, 2)), (59, (2, 2, 1)), (50, (2, 2, 1)), (49, (2, 1, 1)), (30, (1, 1, 1))):
        assert tuple(allocate(made.space, costs, {"macs": limit}, errors).values()) == sizes
    with pytest.raises(AllocationError, match="no allocation of space 'made' keeps the budget"):
        allocate(made.space, costs, {"macs": 29}, errors)


@pytest.mark.parametrize("seed", range(4))
def test_more_budget_never_costs_more_than_a_step(seed: int) -> None:
    made = Made(seed, SINGLE, convex=True)
    found = [
        made.error(allocate(made.space, made.costs, made.share(share), made.errors)) for share in (0.55, 0.7, 0.85, 0.95, 1.0)
    ]
    assert found == sorted(found, reverse=True)
    assert found[-1] == 0


@pytest.mark.parametrize("name", ["contract", "heads", "full"])
def test_a_model_is_cut_better_than_uniformly(make_vit: Callable[..., nn.Module], images: Tensor, name: str) -> None:
    model = make_vit(num_heads=4)
    space = describe(model, name, multiple=4)
    costs = cost_model(model, space)
    factors = Factors.compute(model, space, images.split(16))  # type: ignore[no-untyped-call]
    errors = {site.name: factors.error(site) for site in space.sites}

    def total(allocation: Allocation) -> float:
        return sum(errors[site.name][allocation[site.name]] for site in space.sites if site.kind != "branch")

    before, free = float("inf"), costs.count(space.lossless(), "macs") / costs.dense["macs"]
    for share in (0.4, 0.6, 0.8, 1.0):
        limits: dict[Cost, float] = {"macs": share * costs.dense["macs"]}
        found = allocate(space, costs, limits, errors)
        space.validate(found)
        assert costs.load(found, limits) <= 1
        assert costs.load(found, limits) > min(0.9, free - 1e-9)
        uniform = space.decode(1.0, lambda allocation, limits=limits: costs.load(allocation, limits))  # type: ignore[misc]
        assert total(found) <= total(uniform)
        assert total(found) < before or total(found) == 0  # at the last two budgets what is free may be enough
        before = total(found)
    assert before == 0
