"""The engine's own sampler: it knows that errors nearly add up over the sites, and learns from finished trials by how much not.

Every proposal is made in three steps. A model of the error (search/posterior.py) is fitted to all finished trials; the knapsack
answers draws of its multipliers, and the multipliers of trials on the front with a few of them moved, with allocations on many
budgets; and the allocation whose expected gain of hypervolume is largest is proposed. Its parameters are the multipliers and the
budget that the knapsack decodes to it, so the study alone says what was tried.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtr

from search.parametrisation import BUDGET, SPAN, Parametrisation
from search.posterior import ErrorPosterior

Floats = NDArray[np.float64]

_DRAWS, _MOVES, _BUDGETS = 6, 8, 10
_MOVED, _DISTANCE = 3, 0.7  # sites that a move changes on average, and by how much
_FEWEST = 4  # finished trials before anything can be learnt


class AdditiveSampler(BaseSampler):
    """Proposes for a `Parametrisation` by budget and multipliers; for any other search space as Optuna's TPE does.

    Args:
        parametrisation: what parameters mean.
        seed: of the draws; the same study and seed give the same proposal.
    """

    def __init__(self, parametrisation: Parametrisation, seed: int | None = None) -> None:
        self._parametrisation = parametrisation
        self._names = list(parametrisation.distributions)
        self._rng = np.random.default_rng(seed)
        self._other = TPESampler(seed=seed, multivariate=True)
        self._space = IntersectionSearchSpace()

    def reseed_rng(self) -> None:
        self._rng = np.random.default_rng()
        self._other.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        known = self._space.calculate(study)
        if known and not set(self._names) <= set(known):
            return self._other.infer_relative_search_space(study, trial)
        return dict(self._parametrisation.distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if set(search_space) != set(self._names):
            return self._other.sample_relative(study, trial, search_space)
        trials = [entry for entry in study.get_trials(deepcopy=False) if set(self._names) <= set(entry.params)]
        done = [entry for entry in trials if entry.state == TrialState.COMPLETE]
        if len(done) < _FEWEST:
            return self._named(self._rng.normal(0, 0.3, len(self._names) - 1), self._rng.uniform(*self._parametrisation.band))
        return self._propose(done, [entry for entry in trials if entry.state == TrialState.RUNNING])

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._other.sample_independent(study, trial, param_name, param_distribution)

    def _propose(self, done: Sequence[FrozenTrial], running: Sequence[FrozenTrial]) -> dict[str, float]:
        """The candidate of the largest expected gain; running trials count as finished with the error that is expected."""
        tried = [self._parametrisation.decode(entry.params) for entry in [*done, *running]]
        features = np.array([self._parametrisation.knapsack.features_of(allocation) for allocation in tried])
        loads = np.array([self._parametrisation.load(allocation) for allocation in tried])
        errors = np.array([entry.values[0] for entry in done])
        posterior = ErrorPosterior(features[: len(done)], errors)
        means, _ = posterior.predict(features)
        reference = self._parametrisation.band[1] * 1.02, float(max(means.max(), errors.max())) * 1.02
        multipliers, budgets, chosen = self._candidates(posterior, done, loads, means)
        knapsack = self._parametrisation.knapsack
        fresh = ~(knapsack.features(chosen)[:, None] == features).all(-1).any(1)
        if not fresh.any():
            return self._named(multipliers[0], budgets[0])
        expected, spreads = posterior.predict(knapsack.features(chosen))
        gains = expected_gain(self._parametrisation.loads(chosen), expected, spreads, loads, means, reference)
        best = int(np.where(fresh, gains, -1.0).argmax())
        return self._named(multipliers[best], budgets[best])

    def _candidates(self, posterior, done, loads, means):
        """Multipliers [candidates, sites], budgets [candidates] and options [candidates, branches]."""
        drawn = np.clip(posterior.draw(self._rng, _DRAWS), -SPAN, SPAN)
        front = _front(loads[: len(done)], means[: len(done)])
        parents = np.array([[done[i].params[name] for name in self._names[1:]] for i in self._rng.choice(front, _MOVES)])
        moved = self._rng.random(parents.shape) < _MOVED / parents.shape[1]
        moves = np.clip(parents + moved * self._rng.normal(0, _DISTANCE, parents.shape), -SPAN, SPAN)
        multipliers = np.concatenate([drawn, moves])
        budgets = self._rng.uniform(*self._parametrisation.band, (len(multipliers), _BUDGETS))
        p = self._parametrisation
        chosen = np.concatenate([p.knapsack.choose(p.limits, row, shares.tolist()) for row, shares in zip(multipliers, budgets, strict=True)])
        return np.repeat(multipliers, _BUDGETS, axis=0), budgets.ravel(), chosen

    def _named(self, multipliers: Floats, budget: float) -> dict[str, float]:
        return {BUDGET: float(budget), **dict(zip(self._names[1:], multipliers.tolist(), strict=True))}


def _front(loads: Floats, errors: Floats) -> list[int]:
    order = np.lexsort((errors, loads))
    least = np.minimum.accumulate(errors[order])
    return order[np.concatenate([[True], least[1:] < least[:-1]])]


def expected_gain(loads: Floats, means: Floats, spreads: Floats, tried_loads: Floats, tried_errors: Floats, reference: tuple[float, float]) -> Floats:
    """Expected growth of the hypervolume by each candidate: loads are known, errors are normal.

    The front is a staircase over the load; above each stair, the expected improvement of the error times the width.
    """
    order = np.argsort(tried_loads, kind="stable")
    edges = np.concatenate([[-np.inf], tried_loads[order], [reference[0]]])
    stairs = np.minimum.accumulate(np.concatenate([[reference[1]], np.minimum(tried_errors[order], reference[1])]))
    widths = np.maximum(np.minimum(edges[1:], reference[0]) - np.maximum(edges[:-1], loads[:, None]), 0.0)
    deviation = np.maximum(spreads, 1e-9)[:, None]
    normal = (stairs - means[:, None]) / deviation
    density = np.exp(-0.5 * normal**2) / np.sqrt(2 * np.pi)
    gains = deviation * (normal * ndtr(normal) + density)
    return (widths * gains).sum(1)
