"""Optuna's own messages, which the search's take the place of."""

import warnings

import optuna


def quiet_optuna() -> None:
    """Keep Optuna from telling of every study and trial, and from calling its samplers experimental."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
