"""What was measured of some allocations says about the error of one that was not.

The error after the fine-tune is taken as a saturating power of a total distortion (a Weibull curve from the dense model's error
to 1); the total is the sum of the sites' errors in the profile, each times an unknown multiplier. Log multipliers have Gaussian
priors around zero, the curve has wide ones. All are found as the mode; around it everything is linear, and the posterior
Gaussian (Laplace). The width of the multipliers' prior and the noise have the largest marginal likelihood (MacKay 1992).
"""

import itertools
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv

Floats = NDArray[np.float64]

_CURVE_WIDTHS = (3.0, 0.5, 0.2)  # priors of the curve: log scale, log power, and the error with no distortion
# Standard deviations that are tried, of errors around the model and of log multipliers; the first ones are where it begins.
NOISES = (0.005, 0.0001, 0.0005, 0.002, 0.01, 0.02)
MULTIPLIERS = (0.6, 0.15, 0.3, 1.2)
_ITERATIONS = 30
_MOST = 300  # measurements that a model is fitted to, evenly spaced over all: more tell little and take longer
_FLOOR, _LEAST = 1e-12, 1e-9


class ErrorPosterior:
    """Gaussian posterior of errors.

    Args:
        features: errors of the sites by the profile, of allocations that were measured, [rows, sites].
        errors: of these allocations, between 0 and 1, [rows].

    Attributes:
        mode: of the posterior; the last three of its parameters are not of sites.
        noise: standard deviation of an error around what the model can explain.
    """

    def __init__(self, features: Floats, errors: Floats) -> None:
        self._scale = max(float(np.median(features.sum(1))), _FLOOR)
        chosen = np.unique(np.linspace(0, len(errors) - 1, min(len(errors), _MOST)).round().astype(int))
        self._features, self._errors = features[chosen] / self._scale, errors[chosen]
        self._center = np.concatenate([np.zeros(features.shape[1]), [0.0, 0.0, float(errors.min())]])
        self.mode = self._center.copy()
        self.mode[-3] = -np.log(max(-np.log(max(1 - float(np.median(errors)), 1e-3)), 1e-3))
        self.noise, self._width = NOISES[0], MULTIPLIERS[0]
        for _ in range(2):  # the widths follow from a mode, and the mode from the widths
            self.mode = self._fit()
            self.noise, self._width = self._widths()
        self.mode = self._fit()

    @property
    def multipliers(self) -> Floats:
        """Mean of the log multipliers, [sites]."""
        return self.mode[:-3]

    def predict(self, features: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the noiseless errors of allocations, [rows]."""
        mean, jacobian = error_curve(features / self._scale, self.mode)
        variance = (jacobian @ self._covariance * jacobian).sum(1)
        return mean, np.sqrt(np.maximum(variance, _FLOOR))

    def draw(self, rng: np.random.Generator, count: int) -> Floats:
        """Log multipliers from the posterior, the first row its mean, [count, sites]."""
        values, vectors = np.linalg.eigh(self._covariance[:-3, :-3])
        noise = rng.standard_normal((count, len(self.multipliers)))
        noise[0] = 0.0
        draws: Floats = self.multipliers + noise @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
        return draws

    @cached_property
    def _covariance(self) -> Floats:
        """Of log multipliers and curve."""
        jacobian = error_curve(self._features, self.mode)[1]
        hessian = jacobian.T @ jacobian / self.noise**2 + np.diag(1 / self._variances(self._width))
        inverse = np.linalg.inv(hessian)
        symmetric: Floats = (inverse + inverse.T) / 2
        return symmetric

    def _variances(self, width: float) -> Floats:
        """Of the prior of log multipliers and curve."""
        return np.concatenate([np.full(self._features.shape[1], width**2), np.square(_CURVE_WIDTHS)])

    def _fit(self) -> Floats:
        """Mode of log multipliers and curve, by Levenberg-Marquardt."""
        precision, weight = 1 / self._variances(self._width), 1 / self.noise**2

        def loss_of(theta: Floats) -> float:
            missed = self._errors - _errors_of((self._features * np.exp(theta[:-3])).sum(1), theta)[0]
            return float(weight * missed @ missed + precision @ (theta - self._center) ** 2)

        theta, damping, is_new = self.mode, 1e-3, True
        loss = loss_of(theta)
        for _ in range(_ITERATIONS):
            if is_new:
                mean, jacobian = error_curve(self._features, theta)
                gradient = weight * jacobian.T @ (self._errors - mean) - precision * (theta - self._center)
                hessian = weight * jacobian.T @ jacobian + np.diag(precision)
            step = np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), gradient)
            moved = theta + np.clip(step, -1.0, 1.0)
            found = loss_of(moved)
            is_new = found < loss
            if not is_new:
                damping *= 5
                continue
            done = loss - found < 1e-6 * (1 + loss)
            theta, loss, damping = moved, found, damping / 3
            if done:
                break
        return theta

    def _widths(self) -> tuple[float, float]:
        """Noise and width of the multipliers' prior of the largest marginal likelihood; the model is linear at its mode."""
        mean, jacobian = error_curve(self._features, self.mode)
        residual = self._errors - mean + jacobian @ (self.mode - self._center)
        square, projected, total = jacobian.T @ jacobian, jacobian.T @ residual, float(residual @ residual)

        def evidence(widths: tuple[float, float]) -> float:
            noise, variances = widths[0], self._variances(widths[1])
            factor, solved, failed = dposv(square / noise**2 + np.diag(1 / variances), projected, lower=True)
            if failed:
                raise np.linalg.LinAlgError("a posterior that is not positive definite")
            explained = projected @ solved / noise**2
            determinant = np.log(np.diag(factor)).sum() + 0.5 * np.log(variances).sum() + len(residual) * np.log(noise)
            return float(-0.5 * (total - explained) / noise**2 - determinant)

        return max(itertools.product(NOISES, MULTIPLIERS), key=evidence)


def error_curve(features: Floats, theta: Floats) -> tuple[Floats, Floats]:
    """Errors, [rows], and their derivatives by log multipliers, log scale, log power and the error of no distortion."""
    parts = features * np.exp(theta[:-3])
    total = parts.sum(1)
    errors, logarithm, steep, left = _errors_of(total, theta)
    slopes = parts * (steep / np.maximum(total, _LEAST))[:, None]
    return errors, np.column_stack([slopes, -steep, steep * logarithm, left])


def _errors_of(total: Floats, theta: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Errors of total distortions, [rows], the logarithm of these as shares of the scale, the slope by it, and what is left."""
    logarithm, power = np.log(np.maximum(total, _LEAST)) - theta[-3], np.exp(theta[-2])
    raised = np.exp(np.clip(power * logarithm, -30, 5))
    left = np.exp(-raised)
    return 1 - (1 - theta[-1]) * left, logarithm, (1 - theta[-1]) * left * raised * power, left
