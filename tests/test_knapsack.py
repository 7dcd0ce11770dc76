"""The allocation of least error on a budget, against brute force on small made-up spaces."""

import itertools
import random
from collections.abc import Callable, Mapping

import pytest
from torch import Tensor, nn

from objectives.cost import Cost, CostModel, cost_model
from objectives.sensitivity import Errors
from search.knapsack import Knapsack
from spaces.allocation import Allocation
from spaces.errors import AllocationError
from spaces.factors import Factors
from spaces.sites import Operator, Site, Space
from spaces.vit import describe


def allocate(space: Space, costs: CostModel, limits: Mapping[Cost, float], errors: Errors) -> Allocation:
    return Knapsack(space, costs, errors).allocate(limits)


class Made:
    """A made-up space: branch -> rival operators -> sites -> sizes. A size costs `weight` MACs and one parameter, or the
    product of an operator's sizes; errors fall with every size."""

    def __init__(self, seed: int, branches: list[list[list[tuple[int, ...]]]], convex: bool) -> None:
        self.rng = random.Random(seed)
        self.errors: dict[str, dict[int, float]] = {}
        self.weights: dict[str, int] = {}
        offered = {}
        for branch, rivals in enumerate(branches):
            offered[f"b{branch}"] = tuple(self._operator(branch, rival, sizes, convex) for rival, sizes in enumerate(rivals))
        self.space = Space(name="made", branches=offered)
        operators = tuple((operator, self._count(operator)) for rivals in offered.values() for operator in rivals)
        dense = {"macs": 0, "params": 0}
        for rivals in offered.values():
            macs, params = self._count(rivals[0])({site.part: site.dense for site in rivals[0].sites})
            dense = {"macs": dense["macs"] + macs, "params": dense["params"] + params}
        self.costs = CostModel(dense, operators)  # type: ignore[arg-type]

    def _operator(self, branch: int, rival: int, sizes: list[tuple[int, ...]], convex: bool) -> Operator:
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
        self.weights[f"b{branch}"] = self.weights.get(f"b{branch}") or self.rng.randint(5, 20)
        return Operator(name=f"r{rival}", sites=tuple(sites))

    def _count(self, operator: Operator) -> Callable[[Mapping[str, int]], tuple[int, int]]:
        weight = self.weights[operator.sites[0].branch]

        def count(sizes: Mapping[str, int]) -> tuple[int, int]:
            product = 1
            for size in sizes.values():
                product *= size
            return weight * product, sum(sizes.values())

        return count

    def error(self, allocation: Allocation) -> float:
        return sum(self.errors[name][size] for name, size in allocation.items())

    def share(self, share: float) -> dict[Cost, float]:
        return {"macs": share * self.costs.dense["macs"]}

    def best(self, limits: Mapping[Cost, float]) -> float:
        """Least error of all allocations within the limits; infinite if there is none."""
        per_branch = []
        for rivals in self.space.branches.values():
            choices = [
                dict(zip((site.name for site in operator.sites), sizes, strict=True))
                for operator in rivals
                for sizes in itertools.product(*(site.choices for site in operator.sites))
            ]
            per_branch.append(choices)
        least, identity = float("inf"), self.space.identity()
        for combination in itertools.product(*per_branch):
            allocation = identity.replace({name: size for sizes in combination for name, size in sizes.items()})
            costs = self.costs.costs(allocation)
            if all(costs[cost] <= limit for cost, limit in limits.items()):
                least = min(least, self.error(allocation))
        return least


SINGLE = [[[(1, 2, 3, 4, 5)]], [[(2, 4, 6, 8)]], [[(1, 3, 5, 7)]], [[(2, 3, 4, 6)]]]
RIVALS = [[[(1, 2, 4), (2, 3, 4)], [(1, 6, 16)]], [[(2, 4, 6, 8)], [(1, 5, 8)]], [[(1, 2, 3), (1, 2, 3)]]]


@pytest.mark.parametrize("seed", range(8))
def test_convex_errors_give_the_optimum_up_to_one_step(seed: int) -> None:
    """Nothing within the budget less the largest step between two sizes is better."""
    made = Made(seed, SINGLE, convex=True)
    step = max(
        made.weights[site.branch] * (after - before)
        for site in made.space.sites
        for before, after in itertools.pairwise(site.choices)
    )
    for share in (0.35, 0.5, 0.65, 0.8, 0.95):
        limits = made.share(share)
        if made.best(limits) == float("inf"):
            continue
        found = allocate(made.space, made.costs, limits, made.errors)
        made.space.validate(found)
        assert made.costs.costs(found)["macs"] <= limits["macs"]
        assert made.best(limits) - 1e-9 <= made.error(found) <= made.best({"macs": limits["macs"] - step}) + 1e-9


def test_rivals_several_sites_and_two_limits_come_near_the_optimum() -> None:
    """Errors of any shape and products of sizes: always within the limits, and on average within a tenth of the best."""
    ratios = []
    for seed in range(12):
        made = Made(seed, RIVALS, convex=False)
        for limits in (
            made.share(0.5),
            {"params": 0.7 * made.costs.dense["params"]},
            {"macs": 0.6 * made.costs.dense["macs"], "params": 0.8 * made.costs.dense["params"]},
        ):
            found = allocate(made.space, made.costs, limits, made.errors)  # type: ignore[arg-type]
            made.space.validate(found)
            costs = made.costs.costs(found)
            assert all(costs[cost] <= limit for cost, limit in limits.items())  # type: ignore[index]
            best = made.best(limits)  # type: ignore[arg-type]
            assert made.error(found) >= best - 1e-9
            ratios.append(made.error(found) / best)
    assert sum(ratios) / len(ratios) < 1.1


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
    made.weights.update(b0=10, b1=10, b2=10)
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
        return sum(errors[site][size] for site, size in allocation.items())

    before = float("inf")
    for share in (0.4, 0.6, 0.8, 1.0):
        limits: dict[Cost, float] = {"macs": share * costs.dense["macs"]}
        found = allocate(space, costs, limits, errors)
        space.validate(found)
        assert costs.load(found, limits) <= 1
        assert costs.load(found, limits) > 0.9
        uniform = space.decode(1.0, lambda allocation, limits=limits: costs.load(allocation, limits))  # type: ignore[misc]
        assert total(found) <= total(uniform)
        assert total(found) < before
        before = total(found)
    assert before == 0
