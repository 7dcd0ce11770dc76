"""The expected gain of hypervolume, against brute force."""

from collections.abc import Sequence

import numpy as np
import pytest

from search.pareto import hypervolume
from search.samplers.ehvi import expected_gain

# (load, error) of what is there already, one of them beaten, one beyond the reference.
TRIED = np.array([(0.3, 0.6), (0.5, 0.4), (0.55, 0.5), (0.8, 0.25), (1.3, 0.1)])
REFERENCE = (1.0, 0.8)


def gains(loads: Sequence[float], means: Sequence[float], spreads: Sequence[float]) -> np.ndarray:
    return expected_gain(np.array(loads), np.array(means), np.array(spreads), TRIED[:, 0], TRIED[:, 1], REFERENCE)


def grown(load: float, error: float) -> float:
    """By brute force: how much volume a point adds."""
    tried = TRIED.tolist()
    return hypervolume([*tried, (load, error)], REFERENCE) - hypervolume(tried, REFERENCE)


def test_without_noise_the_expected_gain_is_that_of_the_hypervolume() -> None:
    rng = np.random.default_rng(0)
    loads, errors = rng.uniform(0.1, 1.1, 200), rng.uniform(0.05, 0.9, 200)
    expected = [grown(load, error) for load, error in zip(loads, errors, strict=True)]
    assert 20 < np.count_nonzero(expected) < 180
    assert gains(list(loads), list(errors), [0.0] * 200) == pytest.approx(expected, abs=1e-8)


def test_the_expected_gain_is_the_mean_over_the_errors_that_may_come() -> None:
    rng = np.random.default_rng(1)
    candidates = [(0.2, 0.7, 0.1), (0.4, 0.45, 0.05), (0.52, 0.45, 0.1), (0.7, 0.5, 0.2), (0.95, 0.2, 0.02)]
    for load, mean, spread in candidates:
        drawn = np.array([grown(load, error) for error in mean + spread * rng.standard_normal(800)])
        (found,) = gains([load], [mean], [spread])
        assert found == pytest.approx(drawn.mean(), abs=4 * drawn.std() / np.sqrt(800))


def test_the_expected_gain_of_the_first_candidate_is_its_box() -> None:
    nothing = np.zeros(0)
    found = expected_gain(np.array([0.4]), np.array([0.3]), np.zeros(1), nothing, nothing, REFERENCE)
    assert found == pytest.approx([(1.0 - 0.4) * (0.8 - 0.3)])


def test_a_better_or_a_less_certain_candidate_is_worth_more() -> None:
    assert (np.diff(gains([0.6] * 4, [0.5, 0.45, 0.4, 0.3], [0.05] * 4)) > 0).all()
    assert (np.diff(gains([0.6] * 4, [0.45] * 4, [0.01, 0.05, 0.1, 0.2])) > 0).all()
    assert (np.diff(gains([0.9, 0.7, 0.6, 0.45], [0.2] * 4, [0.01] * 4)) > 0).all()
