"""From sampled parameters to allocations: always legal, always on a target."""

import random
from typing import Any

import numpy as np
import pytest
from local_searches import BRANCH, COARSE, FINE, costs_of, searched, space_of
from optuna.distributions import CategoricalDistribution, IntDistribution

from objectives.cost.spec import Cost
from search.budgets.knapsack import Knapsack
from search.budgets.parametrisation import BUDGET, SPAN, Budgets, Multipliers, Sizes, parametrise
from spaces.allocation import Allocation
from spaces.errors import AllocationError

BRANCHES = 6
DENSE = BRANCH * BRANCHES
HALF: dict[Cost, float] = {"macs": DENSE / 2}
THIRD: dict[Cost, float] = {"macs": DENSE / 3}


def multipliers_of(rivals: bool = False, lows: tuple[float, ...] = (0.5, 0.6)) -> Multipliers:
    """For half and for a third of the MACs, in a space where every budget can be met to the percent."""
    return searched(space_of(rivals, BRANCHES, FINE), [HALF, THIRD][: len(lows)], lows)


def sizes_of(rivals: bool = False, low: float = 0.5) -> Sizes:
    budgeted = multipliers_of(rivals, (low,))
    return Sizes(budgeted.budgets, budgeted.knapsack)


def drawn(parametrisation: Multipliers | Sizes, rng: random.Random) -> dict[str, Any]:
    """Parameters anywhere in their distributions."""
    found: dict[str, Any] = {}
    for name, distribution in parametrisation.distributions.items():
        if isinstance(distribution, CategoricalDistribution):
            found[name] = rng.choice(distribution.choices)
        elif isinstance(distribution, IntDistribution):
            found[name] = rng.randint(distribution.low, distribution.high)
        else:
            found[name] = rng.uniform(distribution.low, distribution.high)  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(
    ("budget", "target", "share"),
    [
        (0.5, 0, 0.5),
        (0.75, 0, 0.75),
        (1.0, 0, 1.0),
        (1.000001, 1, 0.3),
        (1.25, 1, 0.3),
        (1.75, 1, 0.75),
        (2.0, 1, 1.0),
        (2.125, 2, 0.6),
        (3.0, 2, 1.0),
    ],
)
def test_a_budget_is_a_target_and_a_share_of_it(budget: float, target: int, share: float) -> None:
    """Counted from 0; a share below the band is its lower end."""
    space = space_of()
    three = searched(space, [{"macs": 3000}, {"macs": 2000}, {"params": 1500}], [0.5, 0.3, 0.6])
    assert three.aim(budget) == pytest.approx((target, share))
    assert three.distributions[BUDGET].low == 0.5  # type: ignore[attr-defined]
    assert three.distributions[BUDGET].high == 3.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("low", [1 / 3, 2 / 3, 0.123456789, 0.5, 1.0])
def test_the_ends_of_a_band_can_be_proposed(low: float) -> None:
    """Whatever digits they have: a parameter outside of its distribution is refused by Optuna."""
    parametrisation = multipliers_of(lows=(low, low))
    for target in range(2):
        for load in (low, (1 + low) / 2, 1.0):
            parameters = parametrisation.encode(target, load)
            for name, distribution in parametrisation.distributions.items():
                assert distribution._contains(parameters[name]), name
            assert parametrisation.aim(parameters[BUDGET]) == pytest.approx((target, load), abs=1e-6)
            assert parametrisation.budgets.load(parametrisation.decode(parameters), target) <= load + 1e-6


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("rivals", [False, True])
def test_without_multipliers_the_profile_alone_chooses(target: int, rivals: bool) -> None:
    """The allocation of least error on the budget: where a search starts."""
    parametrisation = multipliers_of(rivals)
    for load in (0.6, 0.8, 1.0):
        parameters = parametrisation.encode(target, load)
        assert {parameters[name] for name in parametrisation.knapsack.sites} == {0.0}
        limits = {"macs": load * (HALF, THIRD)[target]["macs"]}
        assert parametrisation.decode(parameters) == parametrisation.knapsack.allocate(limits)


def test_parameters_and_multipliers_are_two_forms_of_one_thing() -> None:
    parametrisation = multipliers_of()
    multipliers = np.random.default_rng(0).uniform(-SPAN, SPAN, BRANCHES)
    parameters = parametrisation.name(1, 0.75, multipliers)
    assert set(parameters) == set(parametrisation.distributions)
    assert parametrisation.aim(parameters[BUDGET]) == (1, 0.75)
    (found,) = parametrisation.decoded([parameters]).multipliers
    assert found == pytest.approx(multipliers, abs=5e-5)
    assert parametrisation.name(1, 0.75, found) == parameters
    assert all(type(value) is float for value in parameters.values()), "they are written as JSON"


def test_a_site_that_matters_more_keeps_more() -> None:
    parametrisation = multipliers_of()
    start = parametrisation.encode(0, 0.8)
    kept = [parametrisation.decode({**start, "b2.hidden": value})["b2.hidden"] for value in (-0.5, 0.0, 0.5, 1.0, 2.0)]
    assert kept == sorted(set(kept))


@pytest.mark.parametrize("rivals", [False, True])
def test_all_multipliers_decode_onto_their_budget(rivals: bool) -> None:
    parametrisation, rng = multipliers_of(rivals), random.Random(0)
    for _ in range(60):
        parameters = drawn(parametrisation, rng)
        target, load = parametrisation.aim(parameters[BUDGET])
        allocation = parametrisation.decode(parameters)
        parametrisation.budgets.space.validate(allocation)
        assert load - 0.01 < parametrisation.budgets.load(allocation, target) <= load


def test_what_is_decoded_is_told_of_the_allocations() -> None:
    parametrisation, rng = multipliers_of(rivals=True), random.Random(0)
    parameters = [drawn(parametrisation, rng) for _ in range(9)]
    found = parametrisation.decoded(parameters)
    assert found.multipliers.tolist() == [list(entry.values())[1:] for entry in parameters]
    for row, allocation in enumerate(parametrisation.allocations(parameters)):
        assert allocation == parametrisation.decode(parameters[row])
        assert found.loads[row].tolist() == [parametrisation.budgets.load(allocation, target) for target in (0, 1)]
        gone = [(1 - site.share(allocation[site.name])) ** 2 for site in parametrisation.budgets.space.sites]
        assert found.features[row] == pytest.approx(gone)


def test_each_is_decoded_once_and_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together or alone, in any order: a study that was read from its journal decodes many at once."""
    parametrisation, alone, rng = multipliers_of(rivals=True), multipliers_of(rivals=True), random.Random(0)
    parameters = [drawn(parametrisation, rng) for _ in range(40)]
    solved, solve = [], Knapsack.solve

    def counted(knapsack: Knapsack, limits: Any, multipliers: Any, shares: Any, frames: Any) -> Any:
        solved.append(len(shares))
        return solve(knapsack, limits, multipliers, shares, frames)

    monkeypatch.setattr(Knapsack, "solve", counted)
    found = parametrisation.decoded([*parameters[:25], *parameters[:5]])
    assert sum(solved) == 25
    assert len(solved) == len({parametrisation.aim(entry[BUDGET])[0] for entry in parameters[:25]}), "a target at a time"
    more = parametrisation.decoded(parameters[::-1])
    parametrisation.allocations(parameters)
    assert sum(solved) == 40
    for row, entry in enumerate(parameters):
        one = alone.decoded([{name: entry[name] for name in reversed(list(entry))}])
        for name in ("chosen", "frames", "multipliers", "features", "loads"):
            assert (getattr(more, name)[39 - row] == getattr(one, name)[0]).all()
            assert row >= 25 or (getattr(found, name)[row] == getattr(one, name)[0]).all()


def test_loads_of_options_are_those_of_their_allocations() -> None:
    space = space_of(True, BRANCHES, FINE)
    parametrisation = searched(space, [{"macs": 3000, "params": 2500}, {"params": 2000}], [0.5, 0.5])
    for target in range(2):
        (chosen,) = parametrisation.choose(target, np.full((1, len(space.sites)), 0.1), np.array([[0.6, 1.0]]))
        allocations = [parametrisation.knapsack.allocation(options) for options in chosen]
        expected = [parametrisation.budgets.load(allocation, target) for allocation in allocations]
        assert parametrisation.loads(chosen, None, target) == pytest.approx(expected)
        assert 0.59 < expected[0] <= 0.6 < 0.99 < expected[1] <= 1


def in_band(budgets: Budgets, allocation: Allocation, slack: float = 0.01) -> bool:
    budgets.space.validate(allocation)
    return budgets.lows[0] - slack < budgets.load(allocation) <= 1


@pytest.mark.parametrize("rivals", [False, True])
def test_sizes_of_the_start_come_back(rivals: bool) -> None:
    parametrisation = sizes_of(rivals)
    for load in (0.5, 0.75, 1.0):
        parameters = parametrisation.encode(0, load)
        for name, distribution in parametrisation.distributions.items():
            assert distribution._contains(distribution.to_internal_repr(parameters[name])), name
        expected = parametrisation.knapsack.allocate({"macs": load * HALF["macs"]})  # type: ignore[union-attr]
        if parametrisation.budgets.load(expected) >= 0.5:
            assert parametrisation.decode(parameters) == expected


@pytest.mark.parametrize("rivals", [False, True])
def test_any_sizes_are_legal_and_in_the_band(rivals: bool) -> None:
    parametrisation, rng = sizes_of(rivals), random.Random(0)
    found = [parametrisation.decode(drawn(parametrisation, rng)) for _ in range(100)]
    assert all(in_band(parametrisation.budgets, allocation) for allocation in found)
    assert len(set(found)) > 90
    if rivals:
        used = {name for allocation in found for name in parametrisation.budgets.space.operators(allocation).values()}
        assert used == {"neurons", "low-rank"}


def test_sizes_in_the_band_are_left_as_they_are() -> None:
    parametrisation = sizes_of()
    numbers = [40, 10, 35, 20, 30, 25]  # the sizes less one, of 64: 166 / 384 of the MACs
    parameters = dict(zip(parametrisation.distributions, numbers, strict=True))
    assert tuple(parametrisation.decode(parameters).values()) == tuple(number + 1 for number in numbers)


@pytest.mark.parametrize(("numbers", "load"), [((60, 50, 40, 58, 30, 55), 1.0), ((3, 9, 1, 20, 5, 14), 0.5)])
def test_sizes_that_miss_the_band_are_moved_onto_it(numbers: tuple[int, ...], load: float) -> None:
    """Down to its upper end or up to its lower one, in proportion: what is larger stays larger."""
    parametrisation = sizes_of()
    parameters = dict(zip(parametrisation.distributions, numbers, strict=True))
    moved = parametrisation.decode(parameters)
    assert load - 0.01 < parametrisation.budgets.load(moved) <= load
    order = sorted(range(BRANCHES), key=lambda index: numbers[index])
    sizes = list(moved.values())
    assert [sizes[index] for index in order] == sorted(sizes)
    down = [size < number + 1 for size, number in zip(sizes, numbers, strict=True)]
    assert all(down) if load == 1.0 else not any(down)


def low_rank_everywhere(low: float) -> tuple[Budgets, dict[str, str]]:
    """A budget that the rank of a branch cannot go down to, and its width can."""
    space = space_of(True, BRANCHES, (FINE[0], (16, 64)))  # rank 16 keeps half of a branch
    budgets = Budgets(space, costs_of(space), [{"macs": 0.3 * DENSE}], [low])
    return budgets, dict.fromkeys(space.branches, "low-rank")


def test_operators_that_cannot_be_made_so_small_give_way() -> None:
    budgets, operators = low_rank_everywhere(0.5)
    with pytest.raises(AllocationError, match="no allocation of space 'test' with these operators"):
        budgets.uniform(1.0, operators=operators)
    assert in_band(budgets, budgets.proportioned(1.0, operators, {}))
    for seed in range(20):
        assert in_band(budgets, budgets.random(0.8, seed))
    parametrisation, rng = Sizes(budgets, None), random.Random(0)
    for _ in range(20):
        assert in_band(budgets, parametrisation.decode({**drawn(parametrisation, rng), **operators}))


@pytest.mark.parametrize("target", [0, 1])
def test_baselines_are_on_their_budget(target: int) -> None:
    """The same share of every site; or random ones, which the seed decides."""
    budgets = multipliers_of(rivals=True).budgets
    for load in (0.6, 1.0):
        uniform = budgets.uniform(load, target)
        assert load - 0.01 < budgets.load(uniform, target) <= load
        widths = [uniform[f"b{index}.hidden"] for index in range(BRANCHES)]
        assert max(widths) - min(widths) <= 1
        found = [budgets.random(load, seed, target) for seed in range(5)]
        assert len(set(found)) == 5
        assert found[0] == budgets.random(load, 0, target)
        for allocation in found:
            budgets.space.validate(allocation)
            assert load - 0.01 < budgets.load(allocation, target) <= load


def test_the_name_chooses_the_parametrisation() -> None:
    space = space_of(sizes=COARSE)
    costs = costs_of(space)
    budgets = Budgets(space, costs, [{"macs": 2000}], [0.5])
    knapsack = Knapsack(space, costs, {site.name: dict.fromkeys(site.choices, 0.0) for site in space.sites})
    assert isinstance(parametrise("multipliers", budgets, knapsack), Multipliers)
    assert isinstance(parametrise("sizes", budgets, knapsack), Sizes)
    assert isinstance(parametrise("multipliers", budgets, None), Sizes), "for a recipe alone: nothing is proposed"
