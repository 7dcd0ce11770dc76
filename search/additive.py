"""The engine's own sampler: it knows that errors nearly add up over the sites, and learns from finished trials by how much not.

A proposal is made in four steps. Models of the divergence before the fine-tune and of the error after it are fitted to what
was measured (search/posterior.py). The knapsack answers draws of their multipliers, and those of trials on the front with a
few sites moved, so that cost goes from some sites to others, on many budgets. Of these candidates, those whose expected gain of
hypervolume is largest are screened: their divergence is measured without a fine-tune. The one with the largest expected gain
is proposed. What was screened is kept with the trial, so that the study alone says what the next proposal is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtr

from search.knapsack import Indices
from search.parametrisation import SPAN, Multipliers
from search.pareto import staircase
from search.posterior import ErrorPosterior
from spaces.allocation import Allocation

Floats = NDArray[np.float64]
Screen = Callable[[Allocation], float]  # mean divergence from the dense model of a candidate as built, in nats

SCREENED = "additive:screened"
SCORE = "score"  # of a finished trial: holds kl_before, the divergence that screening would have measured

_DRAWS, _MOVES, _LOADS = 8, 8, 10  # draws of the models, moves from the front, and budgets of each
_MOVED, _DISTANCE = 3, 0.7  # sites that a move changes on average, and by how much
_SCREENED = 8  # candidates per proposal
_FEWEST = 4  # finished trials before anything can be learnt
_START_SPREAD = 0.3
_RECENT = 60  # trials whose screened candidates are remembered
_MARGIN = 1.02  # of the hypervolume's reference beyond the worst point


@dataclass(frozen=True)
class _Candidates:
    """Parameters of allocations and what they decode to.

    Attributes:
        multipliers: [candidates, sites].
        shares: of the target, [candidates].
        loads: how much of it they use, [candidates].
        features: errors of their sites by the profile, [candidates, sites].
    """

    multipliers: Floats
    shares: Floats
    loads: Floats
    features: Floats

    def __getitem__(self, rows: Any) -> "_Candidates":
        return _Candidates(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


class AdditiveSampler(BaseSampler):
    """Proposes for a parametrisation by multipliers; for any other search space as Optuna's TPE does.

    Args:
        parametrisation: what parameters mean.
        seed: of the draws; the same study and seed give the same proposal.
        screen: measures the divergence of a candidate as built; without it, candidates are compared by the models alone.
    """

    def __init__(self, parametrisation: Multipliers, seed: int | None = None, screen: Screen | None = None) -> None:
        self._parametrisation = parametrisation
        self._names = set(parametrisation.distributions)
        self._rng = np.random.default_rng(seed)
        self._screen = screen
        self._other = TPESampler(seed=seed, multivariate=True)
        self._space = IntersectionSearchSpace()

    def reseed_rng(self) -> None:
        self._rng = np.random.default_rng()
        self._other.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        known = set(self._space.calculate(study))
        if known and not self._names <= known:
            return self._other.infer_relative_search_space(study, trial)
        return dict(self._parametrisation.distributions)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        if set(search_space) != self._names:
            return self._other.sample_relative(study, trial, search_space)
        asked = [entry for entry in study.get_trials(deepcopy=False) if self._names <= entry.params.keys()]
        trials = [entry for entry in asked if entry.state != TrialState.FAIL]
        done = [entry for entry in trials if entry.state == TrialState.COMPLETE]
        unfinished = [entry for entry in trials if entry.state in (TrialState.RUNNING, TrialState.PRUNED)]
        # Targets take turns, also where one of them has nothing new to offer. A study that was read from its journal lacks
        # the repetitions before its last trial, so that nothing else may depend on what failed.
        repeated = sum(1 for _ in takewhile(lambda entry: entry.state == TrialState.FAIL, reversed(asked)))
        target = (len(trials) + repeated) % len(self._parametrisation.budgets.targets)
        if len(done) < _FEWEST:
            share = self._rng.uniform(self._parametrisation.budgets.lows[target], 1.0)
            spread = self._rng.normal(0, _START_SPREAD, len(self._names) - 1)
            return self._parametrisation.name(target, float(share), np.clip(spread, -SPAN, SPAN))
        proposal = _Proposal(self._parametrisation, self._rng, target, trials, done, unfinished)
        screened = proposal.screen(self._screen) if self._screen else []
        if screened:
            study._storage.set_trial_system_attr(trial._trial_id, SCREENED, screened)
        return proposal.best()

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._other.sample_independent(study, trial, param_name, param_distribution)


class _Proposal:
    """What is known when one trial is proposed.

    Running trials, and those stopped at a rung, count as finished with the error that is expected of them.
    """

    def __init__(
        self,
        parametrisation: Multipliers,
        rng: np.random.Generator,
        target: int,
        trials: Sequence[FrozenTrial],
        done: Sequence[FrozenTrial],
        unfinished: Sequence[FrozenTrial],
    ) -> None:
        self._parametrisation, self._rng, self._target = parametrisation, rng, target
        self._tried = self._decoded([entry.params for entry in [*done, *unfinished]])
        screened = [pair for entry in trials[-_RECENT:] for pair in entry.system_attrs.get(SCREENED, [])]
        self._screened = self._decoded([parameters for parameters, _ in screened])
        self._divergence = self._divergence_model(done, [value for _, value in screened])
        errors = np.array([entry.values[0] for entry in done])
        measured = np.array([_divergence_of(entry) for entry in done])
        self._error = ErrorPosterior(self._scaled(self._tried[: len(done)], measured), errors)
        self._means, _ = self._error.predict(self._scaled(self._tried))
        self._reference = _MARGIN, _MARGIN * float(max(self._means.max(), errors.max()))
        self._finished = len(done)
        self._pool = self._candidates()
        self._gains = self._expected_gains(self._pool)

    def screen(self, measure: Screen) -> list[tuple[dict[str, float], float]]:
        """Measure the divergence of the most promising candidates; only they are proposed then. Parameters and divergences."""
        rows = self._promising()
        pool = self._pool[rows]
        parameters = [self._name(pool, row) for row in range(len(rows))]
        values = [measure(self._parametrisation.decode(entry)) for entry in parameters]
        self._pool, self._gains = pool, self._expected_gains(pool, np.array(values))
        return list(zip(parameters, values, strict=True))

    def best(self) -> dict[str, float]:
        """Parameters of the candidate of the largest expected gain."""
        return self._name(self._pool, int(self._gains.argmax()))

    def _divergence_model(self, done: Sequence[FrozenTrial], screened: list[float]) -> ErrorPosterior | None:
        """Of 1 - exp(-divergence) before the fine-tune; None where too few were measured."""
        values = np.array([_divergence_of(entry) for entry in done] + screened)
        known = np.isfinite(values)
        if known.sum() < _FEWEST:
            return None
        features = np.concatenate([self._tried.features[: len(done)], self._screened.features])[known]
        return ErrorPosterior(features, -np.expm1(-values[known]))

    def _scaled(self, candidates: _Candidates, measured: Floats | None = None) -> Floats:
        """With the multipliers of the divergence, and so scaled that features add up to it, measured or expected."""
        if self._divergence is None:
            return candidates.features
        shrunk, _ = self._divergence.predict(candidates.features)
        totals = -np.log1p(-np.clip(shrunk, 1e-9, 1 - 1e-9))
        if measured is not None:
            totals = np.where(np.isfinite(measured), measured, totals)
        weighted = candidates.features * np.exp(self._divergence.multipliers)
        scaled: Floats = weighted * (totals / np.maximum(weighted.sum(1), 1e-12))[:, None]
        return scaled

    def _candidates(self) -> _Candidates:
        """Draws of the models and moves from the front, on many budgets each; none that was tried."""
        drawn = self._error.draw(self._rng, _DRAWS)
        if self._divergence is not None:
            drawn = drawn + self._divergence.draw(self._rng, _DRAWS)
        multipliers = np.clip(np.concatenate([drawn, self._moved()]), -SPAN, SPAN)
        shares = self._rng.uniform(self._parametrisation.budgets.lows[self._target], 1.0, (len(multipliers), _LOADS))
        chosen = np.concatenate(
            [
                self._parametrisation.choose(self._target, row, wanted.tolist())
                for row, wanted in zip(multipliers, shares, strict=True)
            ]
        )
        pool = self._of(np.repeat(multipliers, _LOADS, axis=0), shares.ravel(), chosen)
        known = set(map(bytes, self._tried.features))
        tried = np.array([bytes(row) in known for row in pool.features])
        return pool[~tried] if not tried.all() else pool

    def _moved(self) -> Floats:
        """Multipliers of trials on the front, finished or screened, a few of which are changed, [moves, sites]."""
        known = self._tried[: self._finished]
        loads = np.concatenate([known.loads, self._screened.loads])
        means = np.concatenate([self._means[: self._finished], self._error.predict(self._scaled(self._screened))[0]])
        rows = self._rng.choice(staircase(loads, means), _MOVES)
        parents = np.concatenate([known.multipliers, self._screened.multipliers])[rows]
        moved = self._rng.random(parents.shape) < _MOVED / parents.shape[1]
        children: Floats = parents + moved * self._rng.normal(0, _DISTANCE, parents.shape)
        return children

    def _expected_gains(self, pool: _Candidates, measured: Floats | None = None) -> Floats:
        features = self._scaled(pool, measured)
        means, spreads = self._error.predict(features)
        if self._divergence is not None and measured is None:  # an uncertain divergence is an uncertain error
            shrunk, uncertain = self._divergence.predict(pool.features)
            relative = 1 + uncertain / np.maximum(shrunk, 1e-9)
            moved, _ = self._error.predict(features * relative[:, None])
            spreads = np.hypot(spreads, moved - means)
        return expected_gain(pool.loads, means, spreads, self._tried.loads, self._means, self._reference)

    def _promising(self) -> list[int]:
        """Rows of the pool to screen: the largest expected gain, then the largest beside those that were taken."""
        loads, means = self._tried.loads, self._means
        expected, spreads = self._error.predict(self._scaled(self._pool))
        gains, rows = self._gains, list[int]()
        for _ in range(min(_SCREENED, len(gains))):
            rows.append(int(gains.argmax()))
            loads, means = np.append(loads, self._pool.loads[rows[-1]]), np.append(means, expected[rows[-1]])
            gains = expected_gain(self._pool.loads, expected, spreads, loads, means, self._reference)
            gains[rows] = -1.0
        return rows

    def _decoded(self, parameters: Sequence[dict[str, Any]]) -> _Candidates:
        knapsack, found = self._parametrisation.knapsack, [self._parametrisation.decoded(entry) for entry in parameters]
        features = np.array([entry.features for entry in found]).reshape(-1, len(knapsack.sites))
        return _Candidates(
            multipliers=np.array([entry.multipliers for entry in found]).reshape(features.shape),
            shares=np.zeros(len(found)),
            loads=np.array([entry.loads[self._target] for entry in found]),
            features=features,
        )

    def _of(self, multipliers: Floats, shares: Floats, chosen: Indices) -> _Candidates:
        features = self._parametrisation.knapsack.features(chosen)
        loads = self._parametrisation.loads(chosen, self._target)
        return _Candidates(multipliers, shares, loads, features)

    def _name(self, pool: _Candidates, row: int) -> dict[str, float]:
        return self._parametrisation.name(self._target, float(pool.shares[row]), pool.multipliers[row])


def _divergence_of(trial: FrozenTrial) -> float:
    """What was measured before the fine-tune; NaN where it was not."""
    return float((trial.user_attrs.get(SCORE) or {}).get("kl_before", np.nan))


def expected_gain(
    loads: Floats,
    means: Floats,
    spreads: Floats,
    tried_loads: Floats,
    tried_errors: Floats,
    reference: tuple[float, float],
) -> Floats:
    """Expected growth of the hypervolume by each candidate: its load is known, its error is normal (Emmerich et al. 2006).

    The front is a staircase over the load: above each stair, the expected improvement of the error, times the width.

    Args:
        loads, means, spreads: of candidates, [candidates].
        tried_loads, tried_errors: of what is there already, [tried].
        reference: load and error of the reference point.
    """
    order = np.argsort(tried_loads, kind="stable")
    edges = np.concatenate([[-np.inf], tried_loads[order], [reference[0]]])
    stairs = np.minimum.accumulate(np.concatenate([[reference[1]], np.minimum(tried_errors[order], reference[1])]))
    widths = np.maximum(np.minimum(edges[1:], reference[0]) - np.maximum(edges[:-1], loads[:, None]), 0.0)
    deviation = np.maximum(spreads, 1e-9)[:, None]
    normal = (stairs - means[:, None]) / deviation
    density = np.exp(-0.5 * normal**2) / np.sqrt(2 * np.pi)
    return (widths * deviation * (normal * ndtr(normal) + density)).sum(1)  # type: ignore[no-any-return]
