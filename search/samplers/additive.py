"""The engine's own sampler: it knows that errors nearly add up over the sites, and learns from finished trials by how much not.

Candidates are drawn from what the finished trials say (search/samplers/candidates.py). Those whose expected gain of hypervolume
is largest are screened: their divergence is measured without a fine-tune. The one with the largest expected gain is proposed.
What was screened is kept with the trial, so that the study alone says what the next proposal is.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search.budgets.parametrisation import SPAN, Multipliers
from search.optuna_internals import note
from search.samplers.candidates import FEWEST, Draw
from search.samplers.screening import Parameters
from search.trial import SCREENED
from spaces.allocation import Allocation

Screen = Callable[[Allocation], float]  # mean divergence from the dense model of a candidate as built, in nats


_START_SPREAD = 0.3
_RECENT = 60  # trials whose screened candidates are remembered


class AdditiveSampler(BaseSampler):
    """Proposes for a parametrisation by multipliers; for any other search space as Optuna's TPE does.

    Args:
        parametrisation: what parameters mean.
        seed: of the draws; the same study and seed give the same proposal.
        screen: measures the divergence of a candidate as built, where it is to be measured while a trial is asked for. Without
            it, candidates are compared by the models alone. `draw` leaves the measuring to the caller.

    Attributes:
        drawn: the candidates that it drew last; None before.
    """

    def __init__(self, parametrisation: Multipliers, seed: int | None = None, screen: Screen | None = None) -> None:
        self._parametrisation = parametrisation
        self._names = set(parametrisation.distributions)
        self._rng = np.random.default_rng(seed)
        self._screen = screen
        self.drawn: Draw | None = None
        self._other = TPESampler(seed=seed, multivariate=True)

    def reseed_rng(self) -> None:
        self._rng = np.random.default_rng()
        self._other.reseed_rng()

    def draw(
        self,
        study: Study,
        pending: Sequence[Parameters] = (),
        skipped: int = 0,
        errors: Mapping[int, float] | None = None,
    ) -> Draw | None:
        """Candidates for the next trial; None while too few trials are finished to learn from.

        Args:
            study: of the trials so far.
            pending: what trials to be are expected to become, whose candidates are being screened.
            skipped: draws for the same trial that came to nothing: each had its turn of the targets.
            errors: number of a trial -> the error that is expected of it, in place of the one that was measured.
        """
        asked = self._asked(study)
        trials = [entry for entry in asked if entry.state != TrialState.FAIL]
        done = [entry for entry in trials if entry.state == TrialState.COMPLETE]
        if len(done) < FEWEST:
            return None
        unfinished = [entry.params for entry in trials if entry.state in (TrialState.RUNNING, TrialState.PRUNED)]
        screened = [pair for entry in trials[-_RECENT:] for pair in entry.system_attrs.get(SCREENED, [])]
        target = self._turn(asked, len(pending) + skipped)
        expected = [(errors or {}).get(entry.number, entry.values[0]) for entry in done]
        open_ones: list[Parameters] = [*unfinished, *pending]
        self.drawn = Draw(self._parametrisation, self._rng, target, done, expected, open_ones, screened)
        return self.drawn

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if all(self._names <= entry.params.keys() for entry in done):
            return dict(self._parametrisation.distributions)
        return self._other.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        if set(search_space) != self._names:
            return self._other.sample_relative(study, trial, search_space)
        draw = self.draw(study)
        if draw is None:
            return self._start(self._turn(self._asked(study)))
        if self._screen is None:
            return draw.best()
        divergences = [self._screen(candidate) for candidate in draw.candidates]
        note(study, trial, SCREENED, draw.measured(divergences))
        return draw.choose(divergences)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._other.sample_independent(study, trial, param_name, param_distribution)

    def _asked(self, study: Study) -> list[FrozenTrial]:
        return [entry for entry in study.get_trials(deepcopy=False) if self._names <= entry.params.keys()]

    def _turn(self, asked: Sequence[FrozenTrial], others: int = 0) -> int:
        """Index of the next trial's target: they take turns, also where one of them has nothing new to offer.

        A study that was read from its journal lacks the repetitions before its last trial, so that nothing else may depend on
        what failed.
        """
        repeated = sum(1 for _ in takewhile(lambda entry: entry.state == TrialState.FAIL, reversed(asked)))
        trials = sum(entry.state != TrialState.FAIL for entry in asked)
        return (trials + repeated + others) % len(self._parametrisation.budgets.targets)

    def _start(self, target: int) -> dict[str, Any]:
        """Around the profile, before anything is known."""
        ours = self._parametrisation
        share, frames = self._rng.uniform(ours.budgets.lows[target], 1.0), ours.knapsack.frames
        spread, frame = self._rng.normal(0, _START_SPREAD, len(ours.knapsack.sites)), 0
        if len(frames) > 1:
            none = np.zeros((1, len(frames.ranges)))
            frame = int(ours.outline(target).drawn(self._rng, np.array([share]), none, _START_SPREAD)[0])
        return ours.name(target, float(share), np.clip(spread, -SPAN, SPAN), frame)
