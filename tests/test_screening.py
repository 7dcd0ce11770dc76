"""Screening: what is measured before a trial is proposed, and what is learnt from it."""

import json
from typing import Any

import numpy as np
import optuna
import pytest
from local_problems import Problem
from optuna.trial import create_trial

from search.trial import SCREENED
from spaces.allocation import Allocation
from spaces.errors import DataError

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Recorder:
    """A screen that keeps what it was asked about."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.asked = problem, list[Allocation]()

    def __call__(self, allocation: Allocation) -> float:
        self.asked.append(allocation)
        return self.problem.divergence(allocation)


def test_a_few_candidates_are_screened_and_one_of_them_is_proposed() -> None:
    problem = Problem()
    study, _ = problem.run(6)
    for seed in range(5):
        recorder = Recorder(problem)
        allocation = problem.ask(study, seed, screen=recorder)
        assert 1 < len(recorder.asked) <= 8
        assert allocation in recorder.asked
        stored = study.trials[-1].system_attrs[SCREENED]
        assert [problem.parametrisation.decode(parameters) for parameters, _ in stored] == recorder.asked
        assert [value for _, value in stored] == [problem.divergence(entry) for entry in recorder.asked]


def test_the_start_is_not_screened() -> None:
    problem = Problem()
    recorder = Recorder(problem)
    problem.run(4, screen=recorder)
    assert recorder.asked == []


def test_a_screen_steers() -> None:
    """What it hates, one branch cut, is avoided, until the errors tell that it does not matter."""
    kept: dict[float, list[int]] = {0.0: [], 2.0: []}
    for hated, sizes in kept.items():
        problem = Problem(factor=1.0, hated=hated)
        for seed in range(4):
            _, found = problem.run(8, seed, screen=problem.divergence)
            sizes.extend(allocation["b4.hidden"] for allocation in found[4:])
    assert np.mean(kept[2.0]) > 2 * np.mean(kept[0.0])


def test_screening_learns_sooner() -> None:
    """What a screen knows about the branch that matters more takes as many trials to learn from noisy errors."""
    problem = Problem()
    volumes = [
        [problem.volume(problem.run(7, seed, screen=screen, noise=0.02)[1]) for seed in range(4)]
        for screen in (None, problem.divergence)
    ]
    assert np.mean(volumes[1]) > np.mean(volumes[0]) + 0.005


def test_what_was_screened_is_learnt_from() -> None:
    """It is kept with the trial: another process that reads the study proposes as this one does."""
    problem = Problem(hated=2.0)
    study, _ = problem.run(12, screen=problem.divergence)
    assert sum(SCREENED in trial.system_attrs for trial in study.trials) == 8
    proposals = []
    for attributes in (True, False):
        copied = optuna.create_study(directions=["minimize"] * 2)
        for trial in study.trials:
            system = trial.system_attrs if attributes else {}
            written: dict[str, Any] = {
                "params": trial.params,
                "distributions": trial.distributions,
                "user_attrs": trial.user_attrs,
            }
            copied.add_trial(create_trial(values=trial.values, system_attrs=json.loads(json.dumps(system)), **written))
        proposals.append(problem.ask(copied, seed=99))
    assert proposals[0] == problem.ask(study, seed=99) != proposals[1]


def test_an_error_of_the_screen_passes() -> None:
    def broken(allocation: Allocation) -> float:
        raise DataError("outputs with a candidate are not finite")

    problem = Problem()
    study, _ = problem.run(6)
    with pytest.raises(DataError, match="not finite"):
        problem.ask(study, seed=0, screen=broken)
