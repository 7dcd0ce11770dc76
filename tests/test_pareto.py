import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume

from search.pareto import front, hypervolume, staircase


def brute_front(points: list[tuple[float, ...]]) -> set[tuple[float, ...]]:
    def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and a != b

    return {p for p in points if not any(dominates(q, p) for q in points)}


GRID = st.integers(0, 6).map(lambda step: step / 5)  # with ties, and beyond the reference
PAIRS = st.lists(st.tuples(GRID, GRID), max_size=25)
TRIPLES = st.lists(st.tuples(GRID, GRID, GRID), max_size=25)


@given(PAIRS | TRIPLES, st.randoms(use_true_random=False))
def test_front_equals_brute_force_in_any_order_with_duplicates_and_nan(
    points: list[tuple[float, ...]], rng: random.Random
) -> None:
    dimensions = len(points[0]) if points else 2
    noisy = [*points, *points[:5], (math.nan,) * dimensions, (0.0, math.inf, 0.0)[:dimensions]]
    rng.shuffle(noisy)
    found = [noisy[i] for i in front(noisy)]
    assert set(found) == brute_front(points)
    assert len(found) == len(set(found)), "equal points are kept once"


@given(PAIRS.filter(len))
def test_a_staircase_is_the_front_of_pairs(points: list[tuple[float, float]]) -> None:
    costs, errors = np.array(points).T
    assert staircase(costs, errors).tolist() == front(points)


@given(PAIRS | TRIPLES)
def test_hypervolume_equals_optunas(points: list[tuple[float, ...]]) -> None:
    dimensions = len(points[0]) if points else 2
    inside = [point for point in points if max(point) < 1]
    expected = compute_hypervolume(np.array(inside).reshape(-1, dimensions), np.ones(dimensions)) if inside else 0.0
    assert hypervolume(points, [1.0] * dimensions) == pytest.approx(expected)


@given(TRIPLES, st.tuples(GRID, GRID, GRID))
def test_one_more_point_never_takes_volume_away(points: list[tuple[float, ...]], more: tuple[float, ...]) -> None:
    before, after = (hypervolume(each, [1.0] * 3) for each in (points, [*points, more]))
    assert after >= before - 1e-12
    if any(all(x <= y for x, y in zip(point, more, strict=True)) for point in points):
        assert after == pytest.approx(before)


def test_hypervolume_by_hand() -> None:
    assert hypervolume([(0.5, 0.5)], (1, 1)) == 0.25
    assert hypervolume([(0.25, 0.75), (0.75, 0.25)], (1, 1)) == 0.25 * 0.75 * 2 - 0.0625
    assert hypervolume([], (1, 1)) == hypervolume([(math.nan, 0.1), (1.0, 0.0)], (1, 1)) == 0.0
    for order in itertools.permutations([(0.2, 0.8), (0.5, 0.5), (0.8, 0.2)]):
        assert hypervolume(list(order), (1, 1)) == pytest.approx(0.2 * 0.3 + 0.5 * 0.3 + 0.8 * 0.2)
