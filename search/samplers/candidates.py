"""Candidates of one trial to be, and how they compare.

Models of the divergence before the fine-tune and of the error after it (search/samplers/error_posterior.py) are fitted to what
was measured. The knapsack answers draws of their multipliers, and those of trials on the front with a few sites moved, so that
cost goes from some sites to others, on many budgets. Candidates are compared by their expected gain of hypervolume; a measured
divergence makes it more certain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from search.budgets.options import Floats, Indices
from search.budgets.parametrisation import SPAN, Multipliers
from search.pareto import staircase
from search.samplers.ehvi import expected_gain
from search.samplers.error_posterior import ErrorPosterior
from search.samplers.screening import SCORE, Measured, Parameters
from spaces.allocation import Allocation

FEWEST = 4  # finished trials before anything can be learnt

_DRAWS, _MOVES, _LOADS = 8, 8, 10  # draws of the models, moves from the front, and budgets of each
_MOVED, _DISTANCE = 3, 0.7  # sites that a move changes on average, and by how much
_SCREENED = 8  # candidates per proposal
_NEAR = 0.15  # share of the band on either side that a drawn frame is tried on
_UNSURE = 0.25  # spread of the logarithm of what is expected of a frame
_REFRAMED = 0.5  # share of the moves that get another frame
_MARGIN = 1.02  # of the hypervolume's reference beyond the worst point


@dataclass(frozen=True)
class _Points:
    """Parameters and what they decode to.

    Attributes:
        frames: that they are inside of, [points].
        multipliers: [points, sites].
        loads: how much of the target is used, [points].
        features: errors by the profile of the sites, and of the parts of frames, [points, sites + parts].
    """

    frames: Indices
    multipliers: Floats
    loads: Floats
    features: Floats

    def __getitem__(self, rows: Any) -> "_Points":
        return _Points(self.frames[rows], self.multipliers[rows], self.loads[rows], self.features[rows])


class Draw:
    """Candidates for one trial to be, drawn from what is known now; what is learnt later does not change them.

    Args:
        parametrisation: what parameters mean.
        rng: of the draws.
        target: index of the target that they are for.
        done: trials whose error was measured, at least `FEWEST`.
        errors: of these: measured ones, or those that are expected by all that was measured.
        unfinished: parameters of trials without an error: they count as finished with the error that is expected of them.
        screened: what was measured of candidates before.

    Attributes:
        target: as given.
    """

    def __init__(
        self,
        parametrisation: Multipliers,
        rng: np.random.Generator,
        target: int,
        done: Sequence[FrozenTrial],
        errors: Sequence[float],
        unfinished: Sequence[Parameters],
        screened: Measured,
    ) -> None:
        self._parametrisation, self._rng, self.target = parametrisation, rng, target
        self._sites = len(parametrisation.knapsack.sites)
        self._tried = self._decoded([*(entry.params for entry in done), *unfinished])
        self._screened = self._decoded([parameters for parameters, _ in screened])
        divergences, values = np.array([_divergence_of(entry) for entry in done]), np.array([value for _, value in screened])
        self._divergence = self._divergence_model(divergences, values)
        self._fit(np.array(errors), divergences)
        self._pool, self._shares = self._candidates(len(done), values)
        self._expected, self._spreads = self._predict(self._pool)
        self._gains = self._gains_of(self._pool, self._expected, self._spreads)

    @cached_property
    def parameters(self) -> list[dict[str, Any]]:
        """Of the candidates."""
        return [self._name(row) for row in self._promising]

    @cached_property
    def candidates(self) -> tuple[Allocation, ...]:
        """What is worth to be screened, the most promising one first; at most eight."""
        return self._parametrisation.allocations(self.parameters)

    @property
    def gain(self) -> float:
        """By how much the most promising one should lower the front: the expected error, averaged over the target's band."""
        return float(self._gains.max()) / (self._reference[0] - self._parametrisation.budgets.lows[self.target])

    def best(self) -> dict[str, Any]:
        """Parameters of the largest expected gain, by the models alone: those of the first candidate."""
        return self._name(int(self._gains.argmax()))

    def choose(self, divergences: Sequence[float]) -> dict[str, Any]:
        """Parameters of the candidate of the largest expected gain, given all divergences.

        Args:
            divergences: of `candidates` as built, in nats; one that is not finite was not measured, and its candidate is
                chosen only where none was.
        """
        measured, pool = np.array(divergences, dtype=float), self._pool[self._promising]
        gains = self._gains_of(pool, *self._predict(pool, measured))
        if np.isfinite(measured).any():
            gains[~np.isfinite(measured)] = -np.inf
        return self.parameters[int(gains.argmax())]

    def measured(self, divergences: Sequence[float]) -> Measured:
        """Parameters and divergences of the candidates that were measured, for draws to come."""
        pairs = zip(self.parameters, map(float, divergences), strict=True)
        return [(parameters, value) for parameters, value in pairs if np.isfinite(value)]

    def _divergence_model(self, done: Floats, screened: Floats) -> ErrorPosterior | None:
        """Of 1 - exp(-divergence) before the fine-tune; None where too few were measured."""
        values = np.concatenate([done, screened])
        known = np.isfinite(values)
        if known.sum() < FEWEST:
            return None
        features = np.concatenate([self._tried.features[: len(done)], self._screened.features])[known]
        return ErrorPosterior(features, -np.expm1(-values[known]))

    def _fit(self, errors: Floats, divergences: Floats) -> None:
        """The model of the error, and what it expects of all that was tried."""
        unknown = np.full(len(self._tried.loads) - len(errors), np.nan)
        features, _ = self._scaled(self._tried, np.concatenate([divergences, unknown]))
        self._error = ErrorPosterior(features[: len(errors)], errors)
        self._means, _ = self._error.predict(features)
        self._reference = _MARGIN, _MARGIN * float(max(self._means.max(), errors.max()))

    def _scaled(self, points: _Points, measured: Floats | None = None) -> tuple[Floats, Floats]:
        """Features with the multipliers of the divergence, so scaled that they add up to it, measured or expected.

        And by what share of it an expected divergence is uncertain, [points].
        """
        if self._divergence is None:
            return points.features, np.zeros(len(points.loads))
        shrunk, uncertain = self._divergence.predict(points.features)
        totals, shares = -np.log1p(-np.clip(shrunk, 1e-9, 1 - 1e-9)), uncertain / np.maximum(shrunk, 1e-9)
        if measured is not None:
            known = np.isfinite(measured)
            totals, shares = np.where(known, measured, totals), np.where(known, 0.0, shares)
        weighted = points.features * np.exp(self._divergence.multipliers)
        return weighted * (totals / np.maximum(weighted.sum(1), 1e-12))[:, None], shares

    def _predict(self, points: _Points, measured: Floats | None = None) -> tuple[Floats, Floats]:
        """Mean and standard deviation of errors; an uncertain divergence is an uncertain error."""
        features, uncertain = self._scaled(points, measured)
        means, spreads = self._error.predict(features)
        moved, _ = self._error.predict(features * (1 + uncertain)[:, None])
        return means, np.hypot(spreads, moved - means)

    def _candidates(self, done: int, divergences: Floats) -> tuple[_Points, Floats]:
        """Draws of the models and moves from the front, on many shares of the target each; none that was tried."""
        drawn = self._error.draw(self._rng, _DRAWS)
        if self._divergence is not None:
            drawn = drawn + self._divergence.draw(self._rng, _DRAWS)
        drawn, parents, frames = np.clip(drawn, -SPAN, SPAN), *self._moved(done, divergences)
        shares, of_draws = self._framed(drawn[:, self._sites :])
        multipliers = np.concatenate([drawn[:, : self._sites], np.clip(parents, -SPAN, SPAN)])
        low = self._parametrisation.budgets.lows[self.target]
        shares = np.concatenate([shares, self._rng.uniform(low, 1.0, (len(parents), _LOADS))])
        of_rows = np.concatenate([of_draws, frames])
        if len(self._parametrisation.knapsack.frames) > 1:
            least = self._parametrisation.outline(self.target).least
            of_rows = np.where(np.isfinite(least[of_rows]), of_rows, 0)
            shares = np.maximum(shares, least[of_rows, None])
        each = np.repeat(of_rows, _LOADS)
        chosen = self._parametrisation.choose(self.target, multipliers, shares, of_rows).reshape(shares.size, -1)
        pool, seen = self._of(np.repeat(multipliers, _LOADS, axis=0), chosen, each), set(map(bytes, self._tried.features))
        new = np.array([bytes(row) not in seen for row in pool.features])
        return (pool[new], shares.ravel()[new]) if new.any() else (pool, shares.ravel())

    def _framed(self, multipliers: Floats) -> tuple[Floats, Indices]:
        """Shares of the target for draws, [draws, loads], and a frame for each of them that suits these shares, [draws].

        Args:
            multipliers: of the parts of frames, [draws, parts].
        """
        low = self._parametrisation.budgets.lows[self.target]
        if len(self._parametrisation.knapsack.frames) == 1:
            return self._rng.uniform(low, 1.0, (len(multipliers), _LOADS)), np.zeros(len(multipliers), dtype=int)
        middles = self._rng.uniform(low, 1.0, len(multipliers))
        apart = self._rng.uniform(-_NEAR, _NEAR, (len(multipliers), _LOADS)) * (1 - low)
        frames = self._parametrisation.outline(self.target).drawn(self._rng, middles, multipliers, _UNSURE)
        return np.clip(middles[:, None] + apart, low, 1.0), frames

    def _moved(self, done: int, divergences: Floats) -> tuple[Floats, Indices]:
        """Multipliers of trials on the front, finished or screened, a few of which are changed, [moves, sites]; and frames.

        Some get another frame, so that cost goes from tokens or branches to widths, or back.
        """
        known, knapsack = self._tried[:done], self._parametrisation.knapsack
        features, _ = self._scaled(self._screened, divergences)
        loads = np.concatenate([known.loads, self._screened.loads])
        means = np.concatenate([self._means[:done], self._error.predict(features)[0]])
        rows = self._rng.choice(staircase(loads, means), _MOVES)
        parents = np.concatenate([known.multipliers, self._screened.multipliers])[rows]
        moved = self._rng.random(parents.shape) < _MOVED / parents.shape[1]
        children: Floats = parents + moved * self._rng.normal(0, _DISTANCE, parents.shape)
        frames = np.concatenate([known.frames, self._screened.frames])[rows]
        if len(knapsack.frames) > 1:
            learnt = np.tile(self._error.multipliers[self._sites :], (_MOVES, 1))
            others = self._parametrisation.outline(self.target).drawn(self._rng, loads[rows], learnt, _UNSURE)
            frames = np.where(self._rng.random(_MOVES) < _REFRAMED, others, frames)
        return children, frames

    def _gains_of(self, points: _Points, means: Floats, spreads: Floats) -> Floats:
        return expected_gain(points.loads, means, spreads, self._tried.loads, self._means, self._reference)

    @cached_property
    def _promising(self) -> list[int]:
        """Rows of the pool to screen: the largest expected gain, then the largest beside those that were taken."""
        gains, rows = self._gains.copy(), list[int]()
        front = staircase(self._tried.loads, self._means)
        for _ in range(min(_SCREENED, len(gains))):
            rows.append(int(gains.argmax()))
            loads = np.append(self._tried.loads[front], self._pool.loads[rows])
            means = np.append(self._means[front], self._expected[rows])
            gains = expected_gain(self._pool.loads, self._expected, self._spreads, loads, means, self._reference)
            gains[rows] = -1.0
        return rows

    def _decoded(self, parameters: Sequence[Parameters]) -> _Points:
        if not parameters:
            knapsack = self._parametrisation.knapsack
            none = np.zeros((0, self._sites)), np.zeros(0), np.zeros((0, self._sites + len(knapsack.frames.ranges)))
            return _Points(np.zeros(0, dtype=int), *none)
        found = self._parametrisation.decoded(parameters)
        return _Points(found.frames, found.multipliers, found.loads[:, self.target], found.features)

    def _of(self, multipliers: Floats, chosen: Indices, frames: Indices) -> _Points:
        loads = self._parametrisation.loads(chosen, frames, self.target)
        return _Points(frames, multipliers, loads, self._parametrisation.knapsack.features(chosen, frames))

    def _name(self, row: int) -> dict[str, Any]:
        pool = self._pool
        return self._parametrisation.name(self.target, float(self._shares[row]), pool.multipliers[row], int(pool.frames[row]))


def _divergence_of(trial: FrozenTrial) -> float:
    """What was measured before the fine-tune; NaN where it was not."""
    return float((trial.user_attrs.get(SCORE) or {}).get("kl_before", np.nan))
