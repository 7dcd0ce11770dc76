"""What finished trials say about the error of an allocation that was not tried.

The error after the fine-tune is taken as a saturating power of a total distortion (a Weibull curve from the dense model's error
to 1). The total is the sum of the sites' closed-form errors, each times an unknown multiplier, and of interactions: a distortion
is a squared length, so the product term of two sites is a number in [-1, 1] times the product of the roots of their errors. Log
multipliers and interactions have Gaussian priors around zero; the posterior is Gaussian after linearising at its mode (Laplace),
with the prior widths and the noise chosen by marginal likelihood (MacKay 1992).
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Prior widths that are tried: of log multipliers, of interactions, and of the noise on an error.
_MULTIPLIERS = (0.15, 0.3, 0.6, 1.2)
_INTERACTIONS = (0.0, 0.02, 0.06, 0.2)
_NOISES = (0.0005, 0.002, 0.005, 0.01, 0.02)
_CURVE_WIDTHS = (3.0, 0.5, 0.2)  # of log scale, log power, and the error with no distortion
_WIDTHS_TRIALS, _MODEL_TRIALS = 120, 400  # at most so many trials choose the widths, and carry the covariance
_ITERATIONS = 30


@dataclass(frozen=True)
class _Widths:
    multipliers: float = 0.6
    interactions: float = 0.02
    noise: float = 0.005


class ErrorPosterior:
    """Gaussian posterior of errors given finished trials.

    Args:
        features: closed-form errors of the sites, one row per trial, [trials, sites].
        errors: after the fine-tune, [trials].
    """

    def __init__(self, features: Floats, errors: Floats) -> None:
        self._scale = max(float(np.median(features.sum(1))), 1e-12)
        chosen = _spaced(len(errors), _MODEL_TRIALS)
        self._features, self._errors = features[chosen] / self._scale, errors[chosen]
        self._center = np.concatenate([np.zeros(features.shape[1]), [0.0, 0.0, float(errors.min())]])
        self._mode = self._center.copy()
        self._mode[-3] = -np.log(max(-np.log(max(1 - float(np.median(errors)), 1e-3)), 1e-3))
        self._widths = _Widths()
        for _ in range(2):
            self._mode = self._fit(self._widths)
            self._widths = self._choose()
        self._mode = self._fit(self._widths)
        self._condition()

    @property
    def noise(self) -> float:
        """Standard deviation of an error around what the model can explain."""
        return self._widths.noise

    def predict(self, features: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the noiseless errors of allocations, [rows]."""
        scaled = features / self._scale
        mean, jacobian = _curve(scaled, self._mode)
        cross = self._covariance(scaled, jacobian, self._features, self._jacobian)
        explained = cross @ self._inverse
        mean = mean + jacobian @ (self._center - self._mode) + cross @ self._weights
        own = (jacobian**2) @ self._prior + self._interaction_variance(scaled)
        return mean, np.sqrt(np.maximum(own - (explained * cross).sum(1), 1e-12))

    def draw(self, rng: np.random.Generator, count: int) -> Floats:
        """Log multipliers from the posterior, the first row its mean, [count, sites]."""
        sites = self._features.shape[1]
        spread = self._jacobian[:, :sites] * self._prior[:sites]
        mean = spread.T @ self._weights
        covariance = np.diag(self._prior[:sites]) - spread.T @ self._inverse @ spread
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        noise = rng.standard_normal((count, sites))
        noise[0] = 0.0
        return mean + noise @ root.T

    def _fit(self, widths: _Widths) -> Floats:
        """Mode of the multipliers and the curve, by Levenberg-Marquardt steps; interactions count as noise."""
        theta, damping = self._mode, 1e-3
        precision = 1 / self._variances(widths)
        loss = self._loss(theta, precision, widths)
        for _ in range(_ITERATIONS):
            mean, jacobian = _curve(self._features, theta)
            weight = 1 / self._spread(theta, widths)
            gradient = jacobian.T @ (weight * (self._errors - mean)) - precision * (theta - self._center)
            hessian = (jacobian * weight[:, None]).T @ jacobian + np.diag(precision)
            step = np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), gradient)
            moved = theta + np.clip(step, -1.0, 1.0)
            found = self._loss(moved, precision, widths)
            if found < loss:
                improved, theta, loss, damping = loss - found, moved, found, damping / 3
                if improved < 1e-4 * (1 + abs(loss)):
                    break
            else:
                damping *= 5
                if damping > 1e6:
                    break
        return theta

    def _loss(self, theta: Floats, precision: Floats, widths: _Widths) -> float:
        mean, _ = _curve(self._features, theta)
        return float(
            ((self._errors - mean) ** 2 / self._spread(self._mode, widths)).sum() + (precision * (theta - self._center) ** 2).sum()
        )

    def _spread(self, theta: Floats, widths: _Widths) -> Floats:
        """Variance of each error around the sum of its sites: noise, and interactions as if independent."""
        slope = _slope(self._features, self._mode)
        roots2 = self._features * np.exp(self._mode[:-3])
        own = slope**2 * widths.interactions**2 * (roots2.sum(1) ** 2 - (roots2**2).sum(1))
        return widths.noise**2 + own

    def _variances(self, widths: _Widths) -> Floats:
        sites = self._features.shape[1]
        return np.concatenate([np.full(sites, widths.multipliers**2), np.square(_CURVE_WIDTHS)])

    def _choose(self) -> _Widths:
        """Widths of the largest marginal likelihood, one after the other."""
        rows = _spaced(len(self._errors), _WIDTHS_TRIALS)
        features = self._features[rows]
        mean, jacobian = _curve(features, self._mode)
        residual = self._errors[rows] - mean - jacobian @ (self._center - self._mode)
        sites = features.shape[1]
        multipliers = jacobian[:, :sites] @ jacobian[:, :sites].T
        curve = (jacobian[:, sites:] * np.square(_CURVE_WIDTHS)) @ jacobian[:, sites:].T
        roots2 = features * np.exp(self._mode[:-3])
        interactions = _products(roots2, roots2) * np.outer(*[_slope(features, self._mode)] * 2)

        def evidence(widths: _Widths) -> float:
            covariance = widths.multipliers**2 * multipliers + curve + widths.interactions**2 * interactions
            covariance[np.diag_indices_from(covariance)] += widths.noise**2
            factor = np.linalg.cholesky(covariance)
            white = np.linalg.solve(factor, residual)
            return float(-0.5 * white @ white - np.log(np.diag(factor)).sum())

        best = self._widths
        for _ in range(2):
            for name, values in (("noise", _NOISES), ("interactions", _INTERACTIONS), ("multipliers", _MULTIPLIERS)):
                best = max((replace(best, **{name: value}) for value in values), key=evidence)
        return best

    def _condition(self) -> None:
        self._prior = self._variances(self._widths)
        mean, self._jacobian = _curve(self._features, self._mode)
        covariance = self._covariance(self._features, self._jacobian, self._features, self._jacobian)
        covariance[np.diag_indices_from(covariance)] += self._widths.noise**2
        self._inverse = np.linalg.inv(covariance)
        self._weights = self._inverse @ (self._errors - mean - self._jacobian @ (self._center - self._mode))

    def _covariance(self, features: Floats, jacobian: Floats, others: Floats, other_jacobian: Floats) -> Floats:
        """Prior covariance of errors, linearised at the mode, [rows, other rows]."""
        scale = np.exp(self._mode[:-3])
        products = _products(features * scale, others * scale)
        slopes = np.outer(_slope(features, self._mode), _slope(others, self._mode))
        return (jacobian * self._prior) @ other_jacobian.T + self._widths.interactions**2 * slopes * products

    def _interaction_variance(self, features: Floats) -> Floats:
        scaled = features * np.exp(self._mode[:-3])
        return (self._widths.interactions * _slope(features, self._mode)) ** 2 * (scaled.sum(1) ** 2 - (scaled**2).sum(1))


def _curve(features: Floats, theta: Floats) -> tuple[Floats, Floats]:
    """Errors, [rows], and their derivatives by log multipliers, log scale, log power and the error of no distortion."""
    parts = features * np.exp(theta[:-3])
    total = np.maximum(parts.sum(1), 1e-9)
    logarithm = np.log(total) - theta[-3]
    power = np.exp(theta[-2])
    raised = np.exp(np.clip(power * logarithm, -30, 5))
    left = np.exp(-raised)
    steep = (1 - theta[-1]) * left * raised * power
    jacobian = np.column_stack([parts * (steep / total)[:, None], -steep, steep * logarithm, left])
    return 1 - (1 - theta[-1]) * left, jacobian


def _slope(features: Floats, theta: Floats) -> Floats:
    """Derivative of the error by the total."""
    parts = features * np.exp(theta[:-3])
    _, jacobian = _curve(features, theta)
    return -jacobian[:, -3] / np.maximum(parts.sum(1), 1e-9)


def _products(squares: Floats, others: Floats) -> Floats:
    """Sum over pairs of different sites of the products of the roots, for all rows against all others."""
    roots = np.sqrt(squares) @ np.sqrt(others).T
    return roots**2 - squares @ others.T


def _spaced(count: int, most: int) -> NDArray[np.int64]:
    """At most so many indices, evenly spaced, the last one among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
