"""The loop of a search, with a runner that ends its jobs as it is told."""

from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
import pytest
from local_problems import Problem
from local_searches import opened, scored, searched, space_of

from objectives.forecast import Forecast
from search.budgets.parametrisation import Multipliers
from search.driver.loop import Loop
from search.driver.observer import Observer
from search.runners.job import Need
from search.samplers.candidates import FEWEST
from search.study.study import Study
from search.trial import Job, Outcome, Proposal, Screened, Screening, Trial
from spaces.allocation import Allocation
from spaces.errors import RunError

optuna.logging.set_verbosity(optuna.logging.WARNING)

LOST = "its worker was lost"
PROBLEM = Problem()
FIRST = FEWEST  # number of the first trial that is screened for


def result(job: Job) -> Outcome | Screened:
    if isinstance(job, Screening):
        return Screened(number=job.number, divergences=tuple(PROBLEM.divergence(entry) for entry in job.candidates))
    assert job.allocation is not None
    return Outcome(number=job.number, score=scored(0.1 + job.number / 100, sum(job.allocation.values())))


class Scripted:
    """A runner whose oldest job ends at every wait.

    Args:
        workers: jobs at once.
        ends: how a job ends, given how often it was submitted.
        away: of so many first waits, for which no worker is free.
    """

    limit: float | None = None

    def __init__(
        self, workers: int = 1, ends: Callable[[Job, int], Outcome | Screened] = lambda job, times: result(job), away: int = 0
    ) -> None:
        self.workers, self.ends, self.away = workers, ends, away
        self.running: list[Job] = []
        self.submitted: list[Job] = []
        self.most = 0
        self.devices: list[str] = []

    @property
    def free(self) -> int:
        return 0 if self.away else self.workers - len(self.running)

    def prepare(self, needs: Sequence[Need]) -> None:
        raise NotImplementedError

    def forecast(self, allocation: Allocation) -> Forecast:
        raise NotImplementedError

    def submit(self, job: Job, folder: Path) -> None:
        assert self.free > 0, "no worker is free"
        assert folder.name == f"{job.number:04d}"
        self.running.append(job)
        self.submitted.append(job)
        self.most = max(self.most, len(self.running))

    def wait(self, timeout: float = 1.0) -> Outcome | Screened | None:
        if self.away:
            self.away -= 1
            return None
        assert self.running, "nothing is waited for"
        job = self.running.pop(0)
        return self.ends(job, self.submitted.count(job))

    def close(self) -> None:
        raise NotImplementedError


class Search:
    """A study, and what was told of it."""

    def __init__(self, directory: Path, parametrisation: Multipliers = PROBLEM.parametrisation) -> None:
        self.study = opened(Study(directory, parametrisation, ("error", "macs"), "additive", 0, screening=True))
        self.started: list[int] = []
        self.ended: list[Trial] = []
        self.notices: list[str] = []

    def run(self, runner: Scripted, wanted: int, stopping: Callable[[], bool] = lambda: False) -> None:
        Loop(self.study, runner, wanted, stopping, Noted(self)).run()


class Noted(Observer):
    def __init__(self, search: Search) -> None:
        self._search = search

    def started(self, proposal: Proposal) -> None:
        self._search.started.append(proposal.number)

    def ended(self, trial: Trial) -> None:
        self._search.ended.append(trial)

    def notice(self, text: str) -> None:
        self._search.notices.append(text)


@pytest.fixture
def search(tmp_path: Path) -> Search:
    """Of three warm starts, one trial near them, and others for which candidates are screened."""
    return started(tmp_path)


def started(directory: Path) -> Search:
    search = Search(directory)
    for start in PROBLEM.starts:
        search.study.enqueue("warm start", PROBLEM.parametrisation.decode(start), start)
    return search


def numbers(search: Search) -> list[int]:
    return [trial.proposal.number for trial in search.study.trials]


def lost_first(kind: type[Job], losses: int) -> Callable[[Job, int], Outcome | Screened]:
    """The workers of the first jobs of this kind are lost so often."""

    def ends(job: Job, times: int) -> Outcome | Screened:
        lost = isinstance(job, kind) and job.number in (1, FIRST) and times <= losses
        return Outcome(number=job.number, score=None, reason=LOST, lost=True) if lost else result(job)

    return ends


@pytest.mark.parametrize("workers", [1, 3])
def test_it_ends_with_the_trials_that_were_wanted(search: Search, workers: int) -> None:
    runner = Scripted(workers)
    search.run(runner, FIRST + 4)
    assert sorted(numbers(search)) == sorted(search.started) == list(range(FIRST + 4))
    assert search.ended == search.study.trials
    assert runner.most == workers, "all workers are used, and no more"
    assert not runner.running


def test_a_finished_study_is_left_as_it_is(search: Search) -> None:
    search.run(Scripted(), 2)
    again = Scripted()
    search.run(again, 2)
    assert not again.submitted


def test_every_new_trial_is_screened_and_then_run(search: Search) -> None:
    runner = Scripted()
    search.run(runner, FIRST + 2)
    kinds = [(type(job), job.number) for job in runner.submitted[FIRST:]]
    assert kinds == [(kind, number) for number in (FIRST, FIRST + 1) for kind in (Screening, Proposal)]
    screening, proposal = runner.submitted[FIRST : FIRST + 2]
    assert isinstance(screening, Screening) and isinstance(proposal, Proposal)
    assert proposal.allocation in screening.candidates


def test_it_waits_while_no_worker_is_free(search: Search) -> None:
    runner = Scripted(away=3)
    search.run(runner, 2)
    assert runner.away == 0
    assert numbers(search) == [0, 1]


@pytest.mark.parametrize("losses", [1, 2])
def test_a_lost_trial_is_submitted_again_as_it_was(search: Search, losses: int) -> None:
    runner = Scripted(ends=lost_first(Proposal, losses))
    search.run(runner, 3)
    again = [job for job in runner.submitted if job.number == 1]
    assert len(again) == 1 + losses and len({id(job) for job in again}) == 1
    assert search.notices == [f"trial 1 is run again: {LOST}"] * losses
    assert search.started == [0, 1, 2], "it was started once"
    assert {trial.state for trial in search.study.trials} == {"COMPLETE"}


def test_a_trial_that_is_lost_three_times_has_failed(search: Search) -> None:
    search.run(Scripted(ends=lost_first(Proposal, 9)), 3)
    assert [(trial.state, trial.reason) for trial in search.study.trials if trial.proposal.number == 1] == [("FAIL", LOST)]
    assert len(search.study.trials) == 3


@pytest.mark.parametrize("losses", [1, 2, 9])
def test_a_lost_screening_is_submitted_again_and_ends_nothing(search: Search, losses: int) -> None:
    runner = Scripted(ends=lost_first(Screening, losses))
    search.run(runner, FIRST + 1)
    jobs = [job for job in runner.submitted if job.number == FIRST]
    assert [type(job) for job in jobs] == [Screening] * min(3, 1 + losses) + [Proposal]
    assert len({id(job) for job in jobs[:-1]}) == 1
    assert search.notices == [f"the screening for trial {FIRST} is run again: {LOST}"] * min(2, losses)
    assert numbers(search) == list(range(FIRST + 1))
    chosen, screening = jobs[-1], jobs[0]
    assert isinstance(chosen, Proposal) and isinstance(screening, Screening)
    if losses == 9:  # nothing was measured: the models' first
        assert chosen.allocation == screening.candidates[0]


def test_what_was_chosen_waits_for_a_worker(search: Search) -> None:
    """The one that screened may be gone."""
    runner = Scripted()

    def ends(job: Job, times: int) -> Outcome | Screened:
        if isinstance(job, Screening):
            runner.away = 2
        return result(job)

    runner.ends = ends
    search.run(runner, FIRST + 1)
    assert numbers(search) == list(range(FIRST + 1))


def test_stopped_while_trials_run_finishes_these_alone(search: Search) -> None:
    runner = Scripted(workers=2)
    search.run(runner, 9, stopping=lambda: len(runner.submitted) == 2)
    assert numbers(search) == [0, 1]


def test_stopped_during_a_screening_leaves_its_number_to_the_next_launch(search: Search, tmp_path: Path) -> None:
    runner = Scripted()
    search.run(runner, FIRST + 3, stopping=lambda: len(runner.submitted) == FIRST + 1)
    lost = runner.submitted[-1]
    assert isinstance(lost, Screening)
    assert numbers(search) == list(range(FIRST))
    search.study.close()
    following, again = started(tmp_path), Scripted()
    following.run(again, FIRST + 1)
    assert again.submitted[0] == lost
    assert numbers(following) == list(range(FIRST + 1))


def test_a_lost_trial_that_waits_when_it_is_stopped_is_left_to_the_next_launch(search: Search, tmp_path: Path) -> None:
    runner = Scripted(ends=lost_first(Proposal, 9))
    search.run(runner, 3, stopping=lambda: bool(search.notices))
    assert numbers(search) == [0]
    search.study.close()
    following, again = started(tmp_path), Scripted()
    following.run(again, 3)
    assert again.submitted[0] == runner.submitted[-1]


@pytest.mark.parametrize("workers", [1, 3])
def test_it_ends_when_nothing_new_is_left(tmp_path: Path, workers: int) -> None:
    """Of the widths of one branch eight are in the band."""
    search = Search(tmp_path, searched(space_of(branches=1), [{"macs": 510}], [0.125]))

    def ends(job: Job, times: int) -> Outcome | Screened:
        if isinstance(job, Screening):
            return Screened(number=job.number, divergences=(1.0,) * len(job.candidates))
        return result(job)

    search.run(Scripted(workers, ends), 100)
    found = [trial.proposal.allocation for trial in search.study.trials]
    assert sorted(allocation["b0.hidden"] for allocation in found if allocation) == [8, 16, 24, 32, 40, 48, 56, 64]


def test_the_third_failure_of_one_cause_is_recorded_and_ends_it(search: Search) -> None:
    def ends(job: Job, times: int) -> Outcome | Screened:
        return Outcome(number=job.number, score=None, reason=f"OSError: no space left for trial {job.number}")

    with pytest.raises(RunError, match="3 trials in a row"):
        search.run(Scripted(ends=ends), 9)
    assert [trial.state for trial in search.study.trials] == ["FAIL"] * 3


def test_scores_that_are_not_finite_are_failures_of_one_cause(search: Search) -> None:
    def ends(job: Job, times: int) -> Outcome | Screened:
        return Outcome(number=job.number, score=scored(float("nan"), 100 + job.number))

    with pytest.raises(RunError, match="not finite"):
        search.run(Scripted(ends=ends), 9)
