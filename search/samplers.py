"""Sampler names, and how each is made from a seed."""

import warnings
from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from spaces.errors import ConfigError


def _tpe(seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Optuna's default for several objectives is independent, which is slower per proposal and no better here.
        return TPESampler(seed=seed, multivariate=True, n_startup_trials=10)


def _nsga2(seed: int) -> BaseSampler:
    return NSGAIISampler(seed=seed, population_size=16)


def _random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {"tpe": _tpe, "nsga2": _nsga2, "random": _random}


def create_sampler(name: str, seed: int) -> BaseSampler:
    """The sampler called `name`.

    Raises:
        ConfigError: unknown name.
    """
    if name not in SAMPLERS:
        raise ConfigError(f"unknown sampler {name!r}: choose one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name](seed)
