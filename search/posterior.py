"""What was measured of some allocations says about the error of one that was not.

The error after the fine-tune is taken as a saturating power of a total distortion (a Weibull curve from the dense model's
error to 1). The total is the sum of the sites' errors in the profile, each times an unknown multiplier that may change with
the size, and of interactions: a distortion is a squared length, so the product term of two sites is a number in [-1, 1] times
the product of the roots of their errors; what that misses is a product of how much of the sites is gone. All these unknowns
have Gaussian priors around zero. The multipliers and the curve are found as the mode; around it everything is linear, and the
posterior Gaussian (Laplace). The widths of the priors and the noise are those of the largest marginal likelihood (MacKay 1992).
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular

Floats = NDArray[np.float64]

_CURVE_WIDTHS = (3.0, 0.5, 0.2)  # priors of the curve: log scale, log power, and the error with no distortion
_WIDTHS_TRIALS, _MODEL_TRIALS = 100, 300  # at most so many trials choose the widths, and carry the covariance
_ITERATIONS = 30
_FLOOR = 1e-12


@dataclass(frozen=True)
class _Widths:
    """Standard deviations: of the noise, log multipliers, their change with size, and both kinds of interactions."""

    noise: float = 0.005
    multipliers: float = 0.6
    bends: float = 0.0
    roots: float = 0.02
    removed: float = 0.0


# What is tried for each width.
_GRID = {
    "noise": (0.0001, 0.0005, 0.002, 0.005, 0.01, 0.02),
    "multipliers": (0.15, 0.3, 0.6, 1.2),
    "bends": (0.0, 0.3, 0.6),
    "roots": (0.0, 0.02, 0.06, 0.2),
    "removed": (0.0, 0.01, 0.03, 0.1),
}


@dataclass(frozen=True)
class Rows:
    """Allocations as the model sees them.

    Attributes:
        features: errors of the sites by the profile, [rows, sites].
        positions: how much of every site is gone, from 0 to 1, [rows, sites].
    """

    features: Floats
    positions: Floats

    def __getitem__(self, rows: Any) -> "Rows":
        return Rows(self.features[rows], self.positions[rows])

    def __len__(self) -> int:
        return len(self.features)


class ErrorPosterior:
    """Gaussian posterior of errors.

    Args:
        rows: allocations that were measured.
        errors: of these, between 0 and 1, [rows].
    """

    def __init__(self, rows: Rows, errors: Floats) -> None:
        chosen = _spaced(len(errors), _MODEL_TRIALS)
        self._scale = max(float(np.median(rows.features.sum(1))), _FLOOR)
        self._rows, self._errors = self._scaled(rows[chosen]), errors[chosen]
        self._center = np.concatenate([np.zeros(rows.features.shape[1]), [0.0, 0.0, float(errors.min())]])
        self._mode = self._center.copy()
        self._mode[-3] = -np.log(max(-np.log(max(1 - float(np.median(errors)), 1e-3)), 1e-3))
        self._widths = _Widths()
        for _ in range(2):  # widths by a mode, and a mode by these widths
            self._mode = self._fit()
            self._widths = self._chosen_widths()
        self._mode = self._fit()
        self._condition()

    @cached_property
    def multipliers(self) -> Floats:
        """Mean of the log multipliers, [sites]."""
        return self._spread.T @ self._weights  # type: ignore[no-any-return]

    def predict(self, rows: Rows) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the noiseless errors of allocations, [rows]."""
        scaled = self._scaled(rows)
        mean, jacobian, slope = _curve(scaled.features, self._mode)
        parts = self._parts(scaled)
        cross = self._covariance((jacobian, slope, parts), self._measured)
        mean = mean + jacobian @ (self._center - self._mode) + cross @ self._weights
        own = jacobian**2 @ self._variances + slope**2 * _own(parts, self._widths)
        known = solve_triangular(self._factor, cross.T, lower=True)
        return mean, np.sqrt(np.maximum(own - (known**2).sum(0), _FLOOR))

    def draw(self, rng: np.random.Generator, count: int) -> Floats:
        """Log multipliers from the posterior, the first row its mean, [count, sites]."""
        sites = len(self._center) - 3
        known = solve_triangular(self._factor, self._spread, lower=True)
        covariance = np.diag(self._variances[:sites]) - known.T @ known
        values, vectors = np.linalg.eigh(covariance)
        noise = rng.standard_normal((count, sites))
        noise[0] = 0.0
        draws: Floats = self.multipliers + noise @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
        return draws

    @cached_property
    def _spread(self) -> Floats:
        """Prior covariance of the measured errors with the log multipliers, [measured, sites]."""
        sites = len(self._center) - 3
        return self._measured[0][:, :sites] * self._variances[:sites]

    def _scaled(self, rows: Rows) -> Rows:
        return Rows(rows.features / self._scale, rows.positions)

    @property
    def _variances(self) -> Floats:
        """Of the prior of log multipliers and curve."""
        sites = len(self._center) - 3
        return np.concatenate([np.full(sites, self._widths.multipliers**2), np.square(_CURVE_WIDTHS)])

    def _fit(self) -> Floats:
        """Mode of the multipliers and the curve by Levenberg-Marquardt; what is around their sum counts as noise."""
        precision = 1 / self._variances
        slope = _curve(self._rows.features, self._mode)[2]
        weight = 1 / (self._widths.noise**2 + slope**2 * _own(self._parts(self._rows), self._widths))

        def loss_of(theta: Floats) -> float:
            missed = self._errors - _curve(self._rows.features, theta)[0]
            return float((weight * missed**2).sum() + (precision * (theta - self._center) ** 2).sum())

        theta, damping = self._mode, 1e-3
        loss = loss_of(theta)
        for _ in range(_ITERATIONS):
            mean, jacobian, _ = _curve(self._rows.features, theta)
            gradient = jacobian.T @ (weight * (self._errors - mean)) - precision * (theta - self._center)
            hessian = (jacobian * weight[:, None]).T @ jacobian + np.diag(precision)
            step = np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), gradient)
            moved = theta + np.clip(step, -1.0, 1.0)
            found = loss_of(moved)
            if found >= loss:
                damping *= 5
                continue
            done = loss - found < 1e-4 * (1 + loss)
            theta, loss, damping = moved, found, damping / 3
            if done:
                break
        return theta

    def _chosen_widths(self) -> _Widths:
        """Widths of the largest marginal likelihood, each along its grid, twice."""
        chosen = _spaced(len(self._errors), _WIDTHS_TRIALS)
        rows, errors = self._rows[chosen], self._errors[chosen]
        mean, jacobian, slope = _curve(rows.features, self._mode)
        residual = errors - mean - jacobian @ (self._center - self._mode)
        sites = rows.features.shape[1]
        curve = (jacobian[:, sites:] * np.square(_CURVE_WIDTHS)) @ jacobian[:, sites:].T
        parts = self._parts(rows)
        kernels = {"multipliers": jacobian[:, :sites] @ jacobian[:, :sites].T}
        kernels |= {name: np.outer(slope, slope) * kernel for name, kernel in _kernels(parts, parts).items()}

        def evidence(widths: _Widths) -> float:
            covariance = curve + sum(getattr(widths, name) ** 2 * kernel for name, kernel in kernels.items())
            covariance[np.diag_indices_from(covariance)] += widths.noise**2
            factor = cholesky(covariance, lower=True, overwrite_a=True, check_finite=False)
            white = solve_triangular(factor, residual, lower=True, check_finite=False)
            return float(-0.5 * white @ white - np.log(np.diag(factor)).sum())

        best, known = self._widths, dict[_Widths, float]()
        for _ in range(2):
            for name, values in _GRID.items():
                tried = [replace(best, **{name: value}) for value in values]
                known |= {widths: evidence(widths) for widths in tried if widths not in known}
                best = max(tried, key=known.__getitem__)
        return best

    def _condition(self) -> None:
        mean, jacobian, slope = _curve(self._rows.features, self._mode)
        self._measured = jacobian, slope, self._parts(self._rows)
        covariance = self._covariance(self._measured, self._measured)
        covariance[np.diag_indices_from(covariance)] += self._widths.noise**2
        # Not the inverse: what little variance is left beside measurements of no noise would be lost in its rounding.
        self._factor = np.linalg.cholesky(covariance)
        self._weights = cho_solve((self._factor, True), self._errors - mean - jacobian @ (self._center - self._mode))

    def _parts(self, rows: Rows) -> Rows:
        """Features with the multipliers of the mode."""
        return Rows(rows.features * np.exp(self._mode[:-3]), rows.positions)

    def _covariance(self, some: "_Linear", others: "_Linear") -> Floats:
        """Prior covariance of errors around the mode, [rows, other rows]."""
        kernels = _kernels(some[2], others[2])
        around = sum(getattr(self._widths, name) ** 2 * kernel for name, kernel in kernels.items())
        covariance: Floats = (some[0] * self._variances) @ others[0].T + np.outer(some[1], others[1]) * around
        return covariance


_Linear = tuple[Floats, Floats, Rows]  # derivatives of the error by the unknowns and by the total, and the parts of the total


def _curve(features: Floats, theta: Floats) -> tuple[Floats, Floats, Floats]:
    """Errors, [rows]; their derivatives by log multipliers, log scale, log power and the error of no distortion; and by the
    total."""
    parts = features * np.exp(theta[:-3])
    total = np.maximum(parts.sum(1), 1e-9)
    logarithm, power = np.log(total) - theta[-3], np.exp(theta[-2])
    raised = np.exp(np.clip(power * logarithm, -30, 5))
    left = np.exp(-raised)
    steep = (1 - theta[-1]) * left * raised * power
    slope = steep / total
    return 1 - (1 - theta[-1]) * left, np.column_stack([parts * slope[:, None], -steep, steep * logarithm, left]), slope


def _kernels(some: Rows, others: Rows) -> dict[str, Floats]:
    """Covariance, per unit of width, of what may be in a total besides the sum of its parts."""
    roots = np.sqrt(some.features) @ np.sqrt(others.features).T
    removed = some.positions @ others.positions.T
    return {
        "bends": (some.features * some.positions) @ (others.features * others.positions).T,
        "roots": roots**2 - some.features @ others.features.T,
        "removed": removed**2 - some.positions**2 @ (others.positions**2).T,
    }


def _own(parts: Rows, widths: _Widths) -> Floats:
    """Diagonal of the kernels with their widths, [rows]."""
    features, positions = parts.features, parts.positions
    return (  # type: ignore[no-any-return]
        widths.bends**2 * ((features * positions) ** 2).sum(1)
        + widths.roots**2 * (features.sum(1) ** 2 - (features**2).sum(1))
        + widths.removed**2 * ((positions**2).sum(1) ** 2 - (positions**4).sum(1))
    )


def _spaced(count: int, most: int) -> NDArray[np.int64]:
    """At most so many indices, evenly spaced, the last one among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
