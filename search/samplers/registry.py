"""Samplers by name. What one needs is imported when it is made, so that the names alone cost nothing."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from spaces.errors import ConfigError

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from search.budgets.parametrisation import Parametrisation

ADDITIVE = "additive"


def _additive(seed: int, parametrisation: "Parametrisation") -> "BaseSampler":
    from search.budgets.parametrisation import Multipliers
    from search.samplers.additive import AdditiveSampler

    if not isinstance(parametrisation, Multipliers):
        raise ConfigError(f"the sampler {ADDITIVE!r} proposes multipliers only")
    return AdditiveSampler(parametrisation, seed)


def _tpe(seed: int, parametrisation: "Parametrisation") -> "BaseSampler":
    from optuna.samplers import TPESampler

    # Optuna's default for several objectives is independent, which is slower per proposal and no better here.
    return TPESampler(seed=seed, multivariate=True, n_startup_trials=10)


def _nsga2(seed: int, parametrisation: "Parametrisation") -> "BaseSampler":
    from optuna.samplers import NSGAIISampler

    return NSGAIISampler(seed=seed, population_size=16)


def _gp(seed: int, parametrisation: "Parametrisation") -> "BaseSampler":
    from optuna.samplers import GPSampler

    return GPSampler(seed=seed)


def _random(seed: int, parametrisation: "Parametrisation") -> "BaseSampler":
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


# Each takes a seed, and what its proposals are for; the same seed and study must give the same proposal.
SAMPLERS: "dict[str, Callable[[int, Parametrisation], BaseSampler]]" = {
    ADDITIVE: _additive,
    "tpe": _tpe,
    "nsga2": _nsga2,
    "gp": _gp,
    "random": _random,
}


def create_sampler(name: str, seed: int, parametrisation: "Parametrisation") -> "BaseSampler":
    """The sampler called `name`.

    Args:
        name: one of `SAMPLERS`.
        seed: of its random numbers.
        parametrisation: what it proposes for.

    Raises:
        ConfigError: unknown name, or a parametrisation that the sampler cannot propose for.
    """
    from optuna.exceptions import ExperimentalWarning

    if name not in SAMPLERS:
        raise ConfigError(f"unknown sampler {name!r}: choose one of {', '.join(SAMPLERS)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return SAMPLERS[name](seed, parametrisation)
