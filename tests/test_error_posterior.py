"""The posterior of errors, on made-up candidates whose errors are known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from search.samplers.error_posterior import ErrorPosterior, error_curve

Floats = NDArray[np.float64]

SITES = 6
DENSE = 0.05
# Of the sites' errors; the profile knows nothing of it.
TRUTH = np.log([5.0, 1.0, 1.0, 0.5, 1.0, 1.0])
WORTH = np.array([0.3, 0.1, 0.5, 0.4, 0.2, 0.3])


def rows_of(count: int, seed: int = 0, low: float = 0.0, high: float = 1.0) -> Floats:
    """Errors of candidates' sites by the profile: a share of every site is gone, which costs its square."""
    gone = np.random.default_rng(seed).uniform(low, high, (count, SITES))
    found: Floats = WORTH * gone**2
    return found


def errors_at(rows: Floats, power: float = 0.8) -> Floats:
    errors: Floats = 1 - (1 - DENSE) * np.exp(-(((rows * np.exp(TRUTH)).sum(1) / 2.0) ** power))
    return errors


def in_spreads(posterior: ErrorPosterior, rows: Floats, errors: Floats) -> Floats:
    means, spreads = posterior.predict(rows)
    return np.abs(means - errors) / spreads


@pytest.mark.parametrize("count", [10, 20, 60])
def test_errors_are_where_the_posterior_says(count: int) -> None:
    """Without noise and interactions: at measured candidates and at new ones alike."""
    rows, others = rows_of(count), rows_of(200, seed=1)
    posterior = ErrorPosterior(rows, errors_at(rows))
    assert in_spreads(posterior, rows, errors_at(rows)).max() < 1
    assert in_spreads(posterior, others, errors_at(others)).max() < 1
    assert posterior.predict(others)[1].max() < 0.01


def test_measurements_without_noise_leave_a_spread() -> None:
    """The little variance that is left must not be lost in rounding: many candidates, near one another."""
    rows = rows_of(120, low=0.5, high=0.6)
    _, spreads = ErrorPosterior(rows, errors_at(rows)).predict(rows)
    assert spreads.min() > 5e-6


def test_noise_is_smoothed() -> None:
    """Nearer to the noiseless errors than the measured ones are."""
    rows, noise = rows_of(80), 0.01 * np.random.default_rng(3).standard_normal(80)
    posterior = ErrorPosterior(rows, errors_at(rows) + noise)
    means, _ = posterior.predict(rows)
    assert np.square(means - errors_at(rows)).mean() < 0.5 * np.square(noise).mean()
    assert np.quantile(in_spreads(posterior, rows, errors_at(rows)), 0.9) < 2.5


def test_multipliers_are_learnt_up_to_a_common_factor() -> None:
    """Their common factor is the curve's scale."""
    rows = rows_of(80)
    found = ErrorPosterior(rows, errors_at(rows)).multipliers
    assert found - found.mean() == pytest.approx(TRUTH - TRUTH.mean(), abs=0.15)


def test_what_was_not_tried_is_uncertain() -> None:
    """A site that all candidates left whole, and then is cut."""
    rows = rows_of(40)
    whole = rows * np.array([1, 1, 1, 1, 1, 0])
    posterior = ErrorPosterior(whole, errors_at(whole))
    _, known = posterior.predict(whole)
    _, unknown = posterior.predict(rows_of(40, low=0.5))
    assert unknown.min() > 2 * known.max()


def test_a_measurement_shrinks_the_spread_where_it_is() -> None:
    rows, far = rows_of(12, high=0.5), rows_of(1, seed=2, low=0.8)
    both = np.concatenate([rows, far])
    _, (before,) = ErrorPosterior(rows, errors_at(rows)).predict(far)
    _, (after,) = ErrorPosterior(both, errors_at(both)).predict(far)
    assert after < 0.5 * before


def test_derivatives_are_those_of_finite_differences() -> None:
    rows, rng = rows_of(20, low=0.1), np.random.default_rng(4)
    for _ in range(5):
        theta = rng.normal(0, 0.5, SITES + 3)
        theta[-1] = rng.uniform(0, 0.3)
        _, jacobian = error_curve(rows, theta)
        for column in range(SITES + 3):
            step = 1e-6 * np.eye(SITES + 3)[column]
            change = error_curve(rows, theta + step)[0] - error_curve(rows, theta - step)[0]
            assert jacobian[:, column] == pytest.approx(change / 2e-6, rel=1e-5, abs=1e-8)


def test_the_curve_goes_from_the_error_of_no_distortion_to_one() -> None:
    theta = np.array([0.3, -0.2, 0.5, 0.1, 0.07])  # two sites; scale, power, and the error of no distortion
    errors, jacobian = error_curve(np.array([[0.0, 0.0], [0.1, 0.2], [1e9, 1e9]]), theta)
    assert errors[0] == pytest.approx(0.07, abs=1e-6)
    assert 0.07 < errors[1] < 1
    assert errors[2] == 1
    assert np.isfinite(jacobian).all()


def test_draws_and_predictions_are_one_gaussian(monkeypatch: pytest.MonkeyPatch) -> None:
    """The posterior around the mode is that of a linear regression, here in its information form."""
    monkeypatch.setattr("search.samplers.error_posterior.NOISES", (0.002,))
    monkeypatch.setattr("search.samplers.error_posterior.MULTIPLIERS", (0.6,))
    rows, others = rows_of(15), rows_of(30, seed=1)
    errors = errors_at(rows) + 0.002 * np.random.default_rng(5).standard_normal(15)
    posterior = ErrorPosterior(rows, errors)
    scale, mode = float(np.median(rows.sum(1))), posterior.mode
    precision = 1 / np.square([*[0.6] * SITES, 3.0, 0.5, 0.2])
    center = np.array([*[0.0] * (SITES + 2), errors.min()])
    fitted, jacobian = error_curve(rows / scale, mode)
    covariance = np.linalg.inv(jacobian.T @ jacobian / 0.002**2 + np.diag(precision))
    mean = mode + covariance @ (jacobian.T @ (errors - fitted) / 0.002**2 - precision * (mode - center))

    draws = posterior.draw(np.random.default_rng(6), 40_000)
    assert draws[0] == pytest.approx(posterior.multipliers)
    assert posterior.multipliers == pytest.approx(mean[:SITES], abs=0.002)
    assert draws[1:].mean(0) == pytest.approx(mean[:SITES], abs=0.02)
    assert np.cov(draws[1:].T) == pytest.approx(covariance[:SITES, :SITES], abs=0.02)

    expected, steep = error_curve(others / scale, mode)
    means, spreads = posterior.predict(others)
    assert means == pytest.approx(expected + steep @ (mean - mode), abs=1e-4)
    assert spreads == pytest.approx(np.sqrt(np.einsum("ij,jk,ik->i", steep, covariance, steep)), rel=1e-3)


def test_one_candidate_measured_often_is_its_mean() -> None:
    one = rows_of(1)
    rows = np.repeat(one, 20, 0)
    errors = 0.3 + 0.01 * np.random.default_rng(7).standard_normal(20)
    means, spreads = ErrorPosterior(rows, errors).predict(rows_of(1))
    assert means[0] == pytest.approx(errors.mean(), abs=0.002)
    assert spreads[0] < 0.006
    _, elsewhere = ErrorPosterior(rows, errors).predict(rows_of(1, seed=9))
    assert elsewhere[0] > 3 * spreads[0]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_few_candidates_are_enough_to_begin_with(count: int) -> None:
    rows = rows_of(count)
    posterior = ErrorPosterior(rows, errors_at(rows))
    means, spreads = posterior.predict(rows)
    assert means == pytest.approx(errors_at(rows), abs=0.01)
    _, others = posterior.predict(rows_of(50, seed=1))
    assert np.isfinite(others).all()
    assert others.max() > spreads.max()


def nothing(count: int) -> Floats:
    return np.zeros((count, SITES))


@pytest.mark.parametrize(
    ("rows", "errors"),
    [
        (rows_of(10), np.full(10, 0.2)),
        (rows_of(10), np.zeros(10)),
        (rows_of(10), np.ones(10)),
        (rows_of(10), np.array([0.0, 1.0] * 5)),
        (nothing(10), np.full(10, 0.1)),
        (nothing(10), np.linspace(0.1, 0.2, 10)),
        (1e-14 * rows_of(10), errors_at(rows_of(10))),
        (1e9 * rows_of(10), errors_at(rows_of(10))),
    ],
    ids=["constant", "no error", "all wrong", "both", "whole", "whole, with noise", "tiny features", "huge features"],
)
def test_degenerate_measurements_give_finite_answers(rows: Floats, errors: Floats) -> None:
    posterior = ErrorPosterior(rows, errors)
    for entries in (rows, rows_of(10, seed=1), nothing(2)):
        means, spreads = posterior.predict(entries)
        assert np.isfinite(means).all()
        assert np.isfinite(spreads).all() and (spreads > 0).all()
    assert np.isfinite(posterior.draw(np.random.default_rng(0), 8)).all()
    if len(set(errors)) == 1:
        assert posterior.predict(rows)[0] == pytest.approx(errors, abs=0.02)


def test_the_unit_of_the_features_does_not_matter() -> None:
    rows = rows_of(30)
    small = 1e-4 * rows
    one, other = ErrorPosterior(rows, errors_at(rows)), ErrorPosterior(small, errors_at(rows))
    assert one.predict(rows)[0] == pytest.approx(other.predict(small)[0], abs=1e-6)
    assert one.multipliers == pytest.approx(other.multipliers, abs=1e-4)


def test_the_order_of_the_measurements_does_not_matter() -> None:
    rows, others = rows_of(50), rows_of(20, seed=1)
    errors = errors_at(rows) + 0.003 * np.random.default_rng(8).standard_normal(50)
    order = np.random.default_rng(9).permutation(50)
    one, other = ErrorPosterior(rows, errors), ErrorPosterior(rows[order], errors[order])
    for found, expected in zip(other.predict(others), one.predict(others), strict=True):
        assert found == pytest.approx(expected, abs=1e-6)
    assert other.multipliers == pytest.approx(one.multipliers, abs=1e-5)
