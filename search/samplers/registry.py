"""Sampler names, and how each is made from a seed."""

import warnings
from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from search.budgets.parametrisation import Multipliers, Parametrisation
from search.samplers.additive import AdditiveSampler, Screen
from search.samplers.names import ADDITIVE, SAMPLERS
from spaces.errors import ConfigError


def _tpe(seed: int) -> BaseSampler:
    # Optuna's default for several objectives is independent, which is slower per proposal and no better here.
    return TPESampler(seed=seed, multivariate=True, n_startup_trials=10)


def _nsga2(seed: int) -> BaseSampler:
    return NSGAIISampler(seed=seed, population_size=16)


# Optuna's own; each takes a seed.
OPTUNA: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": _tpe,
    "nsga2": _nsga2,
    "gp": lambda seed: GPSampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}


def create_sampler(name: str, seed: int, parametrisation: Parametrisation, screen: Screen | None = None) -> BaseSampler:
    """The sampler called `name`.

    Args:
        name: one of `SAMPLERS`.
        seed: of its random numbers.
        parametrisation: what it proposes for.
        screen: measures the divergence of a candidate before it is paid for; for the engine's own sampler.

    Raises:
        ConfigError: unknown name, or a parametrisation that the sampler cannot propose for.
    """
    if name not in SAMPLERS:
        raise ConfigError(f"unknown sampler {name!r}: choose one of {', '.join(SAMPLERS)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name != ADDITIVE:
            return OPTUNA[name](seed)
        if not isinstance(parametrisation, Multipliers):
            raise ConfigError(f"the sampler {name!r} proposes multipliers only")
        return AdditiveSampler(parametrisation, seed, screen)
