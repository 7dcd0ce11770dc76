"""The engine's own sampler: Optuna's conformance, the same proposals in any process, and what it learns."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import optuna
import pytest
from local_searches import BRANCH, COARSE, FINE, opened, scored, searched, space_of
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase, MultiObjectiveSamplerTestCase, RelativeSamplerTestCase
from optuna.trial import TrialState, create_trial

from objectives.cost import Cost
from objectives.objective import Score
from search.additive import SCORE, SCREENED, AdditiveSampler, Screen, expected_gain
from search.parametrisation import BUDGET
from search.pareto import hypervolume
from search.posterior import ErrorPosterior
from search.samplers import create_sampler
from search.study import Study
from spaces.allocation import Allocation
from spaces.errors import DataError
from spaces.sites import Space

optuna.logging.set_verbosity(optuna.logging.WARNING)

# Of the branches, by the profile.
WORTH = (0.3, 0.1, 0.5, 0.4, 0.2, 0.3)


class Problem:
    """Six branches whose distortions add up; that of one branch is a multiple of what the profile says.

    Args:
        factor: of the first branch's distortion over its profile.
        hated: what the divergence adds where the fifth branch is cut; it tells nothing of the error.
        shares: of the MACs, a target each.
        low: lower end of all bands.
        sizes: widths and ranks on offer.
    """

    def __init__(
        self,
        factor: float = 5.0,
        hated: float = 0.0,
        shares: Sequence[float] = (0.5,),
        low: float = 0.5,
        rivals: bool = False,
        sizes: Sequence[tuple[int, ...]] = FINE,
    ) -> None:
        self.hated = hated
        self.space: Space = space_of(rivals, len(WORTH), sizes)
        profile = {
            site.name: {size: WORTH[int(site.branch[1:])] * (1 - site.share(size)) ** 2 for size in site.choices}
            for site in self.space.sites
        }
        targets: list[Mapping[Cost, float]] = [{"macs": share * BRANCH * len(WORTH)} for share in shares]
        self.parametrisation = searched(self.space, targets, [low] * len(shares), profile)
        self.truth = {
            name: {size: (factor if name.startswith("b0.") else 1.0) * error for size, error in errors.items()}
            for name, errors in profile.items()
        }

    def distortion(self, allocation: Allocation) -> float:
        return sum(self.truth[name][size] for name, size in allocation.items())

    def divergence(self, allocation: Allocation) -> float:
        return self.distortion(allocation) + self.hated * (1 - allocation["b4.hidden"] / 64)

    def error(self, allocation: Allocation) -> float:
        return 1 - 0.95 * float(np.exp(-self.distortion(allocation)))

    def load(self, allocation: Allocation, target: int = 0) -> float:
        return self.parametrisation.budgets.load(allocation, target)

    def score(self, allocation: Allocation) -> Score:
        macs = self.parametrisation.budgets.costs.count(allocation, "macs")
        return scored(self.error(allocation), macs, self.divergence(allocation))

    @property
    def starts(self) -> list[dict[str, float]]:
        """Of every target, what the profile alone chooses on three loads."""
        targets, low = range(len(self.parametrisation.budgets.targets)), self.parametrisation.budgets.lows[0]
        return [self.parametrisation.encode(target, load) for target in targets for load in (1.0, (1 + low) / 2, low)]

    def ask(self, study: optuna.Study, seed: int, sampler: str = "additive", screen: Screen | None = None) -> Allocation:
        """The next proposal; its trial goes on running."""
        study.sampler = create_sampler(sampler, seed, self.parametrisation, screen)
        return self.parametrisation.decode(study.ask(self.parametrisation.distributions).params)

    def tell(self, study: optuna.Study, allocation: Allocation, noise: float = 0.0) -> None:
        """Finish the last trial."""
        trial = study.trials[-1]
        score = {"kl_before": self.divergence(allocation)}
        study._storage.set_trial_user_attr(trial._trial_id, SCORE, score)
        study.tell(trial.number, [self.error(allocation) + noise, self.load(allocation)])

    def run(
        self, trials: int, seed: int = 0, sampler: str = "additive", screen: Screen | None = None, noise: float = 0.0
    ) -> tuple[optuna.Study, list[Allocation]]:
        """A search of so many trials: three of every target's start, and what is proposed then."""
        study, rng, found = optuna.create_study(directions=["minimize"] * 2), np.random.default_rng(seed), []
        for number in range(trials):
            if number < len(self.starts):
                study.enqueue_trial(self.starts[number])
            found.append(self.ask(study, 1000 * seed + number, sampler, screen))
            self.tell(study, found[-1], noise * rng.standard_normal())
        return study, found

    def volume(self, allocations: Sequence[Allocation]) -> float:
        return hypervolume([(self.load(entry), self.error(entry)) for entry in allocations], (1.0, 0.9))


def loads_of(trials: Sequence[optuna.trial.FrozenTrial]) -> list[float]:
    return [trial.params[BUDGET] for trial in trials]


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


def open_study(directory: Path, problem: Problem, screen: Screen | None) -> Study:
    study = opened(Study(directory, problem.parametrisation, ("error", "macs"), "additive", 0, screen))
    for start in problem.starts:
        study.enqueue("warm start", problem.parametrisation.decode(start), start)
    return study


def run(study: Study, problem: Problem, trials: int) -> None:
    while len(study.trials) < trials:
        proposal = study.ask()
        assert proposal is not None and proposal.allocation is not None
        if proposal.number == 9:
            study.tell(proposal.number, None, "out of memory")
        else:
            study.tell(proposal.number, problem.score(proposal.allocation))


def history(study: Study) -> list[tuple[int, Allocation | None]]:
    return [(trial.proposal.number, trial.proposal.allocation) for trial in study.trials]


@pytest.mark.parametrize("screened", [False, True])
@pytest.mark.parametrize("shares", [(0.5,), (0.5, 0.6)])
def test_a_continued_study_proposes_what_an_uninterrupted_one_would(
    tmp_path: Path, screened: bool, shares: tuple[float, ...]
) -> None:
    """With repetitions, which leave no trace; a failed trial; and one that was running when it was
    interrupted."""
    problem = Problem(shares=shares, low=0.8, sizes=((38, 68, 98, 128), (8, 128)))
    screen = problem.divergence if screened else None
    whole = open_study(tmp_path / "whole", problem, screen)
    run(whole, problem, 18)
    assert whole._seen._forgotten, "nothing was proposed twice: this tests less than it should"
    for stop in (8, 13, 18):
        part = open_study(tmp_path / "part", problem, screen)
        run(part, problem, stop)
        lost = part.ask()
        part.close()
        assert lost is not None
    found = open_study(tmp_path / "part", problem, screen)
    assert history(found) == history(whole)
    assert found.ask() == lost == whole.ask()


PROPOSE = """
import json, sys
sys.path.insert(0, {folder!r})
import test_additive as t
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


# (load, error) of what is there already, one of them beaten, one beyond the reference.
TRIED = np.array([(0.3, 0.6), (0.5, 0.4), (0.55, 0.5), (0.8, 0.25), (1.3, 0.1)])
REFERENCE = (1.0, 0.8)


def gains(loads: Sequence[float], means: Sequence[float], spreads: Sequence[float]) -> np.ndarray:
    return expected_gain(np.array(loads), np.array(means), np.array(spreads), TRIED[:, 0], TRIED[:, 1], REFERENCE)


def grown(load: float, error: float) -> float:
    """By brute force: how much volume a point adds."""
    return hypervolume([*TRIED, (load, error)], REFERENCE) - hypervolume(TRIED, REFERENCE)


def test_without_noise_the_expected_gain_is_that_of_the_hypervolume() -> None:
    rng = np.random.default_rng(0)
    loads, errors = rng.uniform(0.1, 1.1, 200), rng.uniform(0.05, 0.9, 200)
    expected = [grown(load, error) for load, error in zip(loads, errors, strict=True)]
    assert 20 < np.count_nonzero(expected) < 180
    assert gains(loads, errors, np.zeros(200)) == pytest.approx(expected, abs=1e-8)


def test_the_expected_gain_is_the_mean_over_the_errors_that_may_come() -> None:
    rng = np.random.default_rng(1)
    candidates = [(0.2, 0.7, 0.1), (0.4, 0.45, 0.05), (0.52, 0.45, 0.1), (0.7, 0.5, 0.2), (0.95, 0.2, 0.02)]
    for load, mean, spread in candidates:
        drawn = np.array([grown(load, error) for error in mean + spread * rng.standard_normal(800)])
        (found,) = gains([load], [mean], [spread])
        assert found == pytest.approx(drawn.mean(), abs=4 * drawn.std() / np.sqrt(800))


def test_the_expected_gain_of_the_first_candidate_is_its_box() -> None:
    nothing = np.zeros(0)
    found = expected_gain(np.array([0.4]), np.array([0.3]), np.zeros(1), nothing, nothing, REFERENCE)
    assert found == pytest.approx([(1.0 - 0.4) * (0.8 - 0.3)])


def test_a_better_or_a_less_certain_candidate_is_worth_more() -> None:
    assert (np.diff(gains([0.6] * 4, [0.5, 0.45, 0.4, 0.3], [0.05] * 4)) > 0).all()
    assert (np.diff(gains([0.6] * 4, [0.45] * 4, [0.01, 0.05, 0.1, 0.2])) > 0).all()
    assert (np.diff(gains([0.9, 0.7, 0.6, 0.45], [0.2] * 4, [0.01] * 4)) > 0).all()


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
            written = {"params": trial.params, "distributions": trial.distributions, "user_attrs": trial.user_attrs}
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
