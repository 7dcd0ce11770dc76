import itertools
import math
import random

import numpy as np
import pytest
from optuna._hypervolume import compute_hypervolume

from search.pareto import best_under, front, hypervolume, staircase


def brute_front(points: list[tuple[float, ...]]) -> set[tuple[float, ...]]:
    def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and a != b

    return {p for p in points if not any(dominates(q, p) for q in points)}


@pytest.mark.parametrize("dimensions", [2, 3])
def test_front_equals_brute_force_in_any_order_with_duplicates_and_nan(dimensions: int) -> None:
    rng = random.Random(0)
    for _ in range(30):
        points = [tuple(rng.randrange(6) / 5 for _ in range(dimensions)) for _ in range(25)]
        noisy = [*points, *points[:5], (math.nan,) * dimensions, (0.0, math.inf, 0.0)[:dimensions]]
        rng.shuffle(noisy)
        found = [noisy[i] for i in front(noisy)]
        assert set(found) == brute_front(points)
        assert len(found) == len(set(found)), "equal points are kept once"


def test_a_staircase_is_the_front_of_pairs() -> None:
    rng = np.random.default_rng(1)
    for count in (1, 2, 30, 200):
        costs, errors = rng.integers(0, 20, (2, count)) / 20  # with ties
        assert staircase(costs, errors).tolist() == front(list(zip(costs, errors, strict=True)))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_hypervolume_equals_optunas(dimensions: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = rng.random((30, dimensions)) * 1.2
        inside = points[(points < 1).all(axis=1)]
        expected = compute_hypervolume(inside, np.ones(dimensions))
        assert hypervolume([tuple(p) for p in points], [1.0] * dimensions) == pytest.approx(expected)


def test_hypervolume_by_hand() -> None:
    assert hypervolume([(0.5, 0.5)], (1, 1)) == 0.25
    assert hypervolume([(0.25, 0.75), (0.75, 0.25)], (1, 1)) == 0.25 * 0.75 * 2 - 0.0625
    assert hypervolume([], (1, 1)) == hypervolume([(math.nan, 0.1), (1.0, 0.0)], (1, 1)) == 0.0
    for order in itertools.permutations([(0.2, 0.8), (0.5, 0.5), (0.8, 0.2)]):
        assert hypervolume(list(order), (1, 1)) == pytest.approx(0.2 * 0.3 + 0.5 * 0.3 + 0.8 * 0.2)


def test_best_under_takes_the_cheaper_of_equal_errors() -> None:
    errors, costs = [0.1, 0.2, 0.1, math.nan, 0.05], [(5,), (1,), (4,), (0,), (9,)]
    assert best_under(errors, costs, (5,)) == 2
    assert best_under(errors, costs, (3,)) == 1
    assert best_under(errors, costs, (0.5,)) is None
    assert best_under(errors, costs, (100,)) == 4
