"""The engine's own sampler: Optuna's conformance, the same proposals in any process, and what it learns."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest
from local_problems import Problem
from local_searches import COARSE, searched
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase, MultiObjectiveSamplerTestCase, RelativeSamplerTestCase
from optuna.trial import TrialState

from search.budgets.parametrisation import BUDGET
from search.samplers.additive import AdditiveSampler
from search.samplers.error_posterior import ErrorPosterior
from spaces.allocation import Allocation

optuna.logging.set_verbosity(optuna.logging.WARNING)


class TestConformance(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    """Optuna's own tests of samplers, most of them on search spaces that are not the parametrisation's."""

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        parametrisation = Problem(sizes=COARSE).parametrisation

        def create() -> AdditiveSampler:
            created = AdditiveSampler(parametrisation, seed=0)
            created._other._n_startup_trials = 0  # as Optuna has it for TPE, which samples nothing jointly before
            return created

        return create


def test_parameters_beside_its_own_are_sampled_too() -> None:
    problem = Problem()
    study = optuna.create_study(directions=["minimize"] * 2, sampler=AdditiveSampler(problem.parametrisation, seed=0))

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        for name, distribution in problem.parametrisation.distributions.items():
            trial._suggest(name, distribution)
        rate = trial.suggest_float("rate", 0, 1)
        allocation = problem.parametrisation.decode(trial.params)
        return problem.error(allocation) + rate / 100, problem.load(allocation)

    study.optimize(objective, n_trials=8)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert len({trial.params["rate"] for trial in study.trials}) == 8


PROPOSE = """
import json, sys
sys.path.insert(0, {folder!r})
import local_problems as t
problem = t.Problem(shares=(0.5, 0.6))
study, found = problem.run(9, screen=problem.divergence)
print(json.dumps([dict(allocation) for allocation in found]))
"""


@pytest.mark.slow
def test_another_process_proposes_the_same() -> None:
    code = PROPOSE.format(folder=str(Path(__file__).parent))
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    problem = Problem(shares=(0.5, 0.6))
    _, found = problem.run(9, screen=problem.divergence)
    assert [Allocation(sizes) for sizes in json.loads(done.stdout)] == found


def test_the_seed_decides() -> None:
    problem = Problem()
    study, _ = problem.run(6)
    proposals = [problem.ask(optuna.create_study(directions=["minimize"] * 2), seed) for seed in (0, 0, 1)]
    assert proposals[0] == proposals[1] != proposals[2], "before anything is known"
    later = []
    for seed in (0, 0, 1):
        copied = optuna.create_study(directions=["minimize"] * 2)
        copied.add_trials(study.trials)
        later.append(problem.ask(copied, seed))
    assert later[0] == later[1] != later[2]


def test_running_trials_are_not_proposed_again() -> None:
    """With the same seed for all, so that nothing else tells proposals apart."""
    problem = Problem()
    study, finished = problem.run(8)
    running = [problem.ask(study, seed=0) for _ in range(6)]
    assert len({*running, *finished}) == 14
    loads = sorted(problem.load(allocation) for allocation in running)
    assert np.diff(loads).max() < 0.35, "they share the front among them"
    assert len({round(load, 1) for load in loads}) >= 3


def test_stopped_trials_are_not_proposed_again() -> None:
    """Their error is not known, but they were tried."""
    problem = Problem()
    study, finished = problem.run(8)
    stopped = []
    for _ in range(4):
        stopped.append(problem.ask(study, seed=0))
        study.tell(study.trials[-1].number, state=TrialState.PRUNED)
    assert len({*stopped, *finished}) == 12


@pytest.mark.parametrize("rivals", [False, True])
@pytest.mark.parametrize("shares", [(0.5,), (0.6, 0.4, 0.3)])
def test_every_proposal_is_legal_and_in_the_band_of_its_target(rivals: bool, shares: tuple[float, ...]) -> None:
    for seed in range(2):
        problem = Problem(shares=shares, low=0.6, rivals=rivals)
        starts = len(problem.starts)
        study, found = problem.run(starts + 9, seed, screen=problem.divergence if seed else None)
        turns = []
        for trial, allocation in zip(study.trials[starts:], found[starts:], strict=True):
            target, load = problem.parametrisation.aim(trial.params[BUDGET])
            problem.space.validate(allocation)
            assert 0.6 - 0.01 < problem.load(allocation, target) <= 1
            assert abs(problem.load(allocation, target) - load) < 0.01
            turns.append(target)
        assert turns == [number % len(shares) for number in range(9)], "targets take turns"


def test_a_failed_trial_has_no_say() -> None:
    """What failed was measured by nobody, and where its study is read from a journal, repetitions are not in it."""
    problem = Problem()
    study, _ = problem.run(8)
    copied = optuna.create_study(directions=["minimize"] * 2)
    copied.add_trials(study.trials)
    problem.ask(copied, seed=5, screen=problem.divergence)
    copied.tell(copied.trials[-1].number, state=TrialState.FAIL)
    assert problem.ask(copied, seed=0) == problem.ask(study, seed=0)


def test_it_learns_what_the_profile_is_wrong_about() -> None:
    """The first branch matters five times as much: its multiplier rises above the others, and it gets more."""
    problem = Problem()
    knapsack = problem.parametrisation.knapsack
    for seed in range(3):
        study, found = problem.run(20, seed, noise=0.003)
        features = np.array([knapsack.features_of(allocation) for allocation in found])
        errors = np.array([trial.values[0] for trial in study.trials])
        first, *others = ErrorPosterior(features, errors).multipliers
        assert first > 0.5
        assert max(others) < first - 1
        for allocation in found[-6:]:
            start = knapsack.allocate({"macs": problem.load(allocation) * 3000})
            assert allocation["b0.hidden"] > start["b0.hidden"] + 10


def test_it_beats_random_multipliers() -> None:
    """Of the volume between the start and the best front there is, hardly anything is left to it, and a third to these."""
    problem = Problem()
    known = searched(problem.space, [{"macs": 3000}], [0.5], problem.truth).knapsack
    best = problem.volume([known.allocate({"macs": 3000 * load}) for load in np.linspace(0.5, 1, 40)])
    missing: dict[str, list[float]] = {"additive": [], "random": []}
    for name, shares in missing.items():
        for seed in range(3):
            _, found = problem.run(20, seed, name, noise=0.003)
            shares.append((best - problem.volume(found)) / (best - problem.volume(found[:3])))
    assert max(missing["additive"]) < 0.1
    assert np.mean(missing["additive"]) < 0.2 * min(missing["random"])
