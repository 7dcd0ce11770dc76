"""A study whose candidates are screened: asked, chosen and told in any order, interrupted and taken up again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from local_problems import Problem
from local_searches import opened, score_of, searched, space_of
from optuna.samplers import BaseSampler, RandomSampler

from search.budgets.knapsack import Knapsack
from search.samplers.registry import SAMPLERS, create_sampler
from search.samplers.screening import Measured, Parameters, ScreeningSampler
from search.study.study import Study
from search.trial import SCREENED, Outcome, Proposal, Screening
from spaces.allocation import Allocation

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Counted(Study):
    """Knows how many of its attempts came to nothing."""

    repeated = 0

    def _sampler(self, number: int, attempt: int) -> BaseSampler:
        self.repeated += attempt > 0
        return super()._sampler(number, attempt)


def open_study(directory: Path, problem: Problem, screening: bool) -> Counted:
    study = Counted(directory, problem.parametrisation, ("error", "macs"), "additive", 0, screening)
    opened(study)
    for start in problem.starts:
        study.enqueue("warm start", problem.parametrisation.decode(start), start)
    return study


def proposed(study: Study, problem: Problem) -> Proposal | None:
    """The next trial, once its candidates are screened."""
    return screened(study, problem, study.ask())


def screened(study: Study, problem: Problem, found: Proposal | Screening | None) -> Proposal | None:
    while isinstance(found, Screening):
        found = study.choose(found.number, [problem.divergence(entry) for entry in found.candidates])
    return found


def run(study: Study, problem: Problem, trials: int) -> None:
    while len(study.trials) < trials:
        proposal = proposed(study, problem)
        assert proposal is not None and proposal.allocation is not None
        if proposal.number == 9:
            study.tell(Outcome(number=proposal.number, score=None, reason="out of memory"))
        else:
            study.tell(Outcome(number=proposal.number, score=problem.score(proposal.allocation)))


def history(study: Study) -> list[tuple[int, Allocation | None]]:
    return [(trial.proposal.number, trial.proposal.allocation) for trial in study.trials]


@pytest.mark.parametrize("screened", [False, True])
@pytest.mark.parametrize("shares", [(0.5,), (0.5, 0.6)])
def test_a_continued_study_proposes_what_an_uninterrupted_one_would(
    tmp_path: Path, screened: bool, shares: tuple[float, ...]
) -> None:
    """With repetitions, which only the uninterrupted one remembers; a failed trial; and one that was running when it was
    interrupted."""
    problem = Problem(shares=shares, low=0.8, sizes=((38, 68, 98, 128), (8, 128)))
    whole = open_study(tmp_path / "whole", problem, screened)
    run(whole, problem, 18)
    assert whole.repeated > 0, "nothing was proposed twice: this tests less than it should"
    for stop in (8, 13, 18):
        part = open_study(tmp_path / "part", problem, screened)
        run(part, problem, stop)
        lost = proposed(part, problem)
        part.close()
        assert lost is not None
    found = open_study(tmp_path / "part", problem, screened)
    assert history(found) == history(whole)
    assert proposed(found, problem) == lost == proposed(whole, problem)


def started(directory: Path, problem: Problem, trials: int = 8) -> Counted:
    """A screened study of so many finished trials."""
    study = open_study(directory, problem, screening=True)
    run(study, problem, trials)
    return study


def screening_of(study: Study) -> Screening:
    found = study.ask()
    assert isinstance(found, Screening)
    return found


def divergences_of(problem: Problem, screening: Screening) -> list[float]:
    return [problem.divergence(candidate) for candidate in screening.candidates]


def chosen(study: Study, screening: Screening, divergences: list[float]) -> Proposal:
    found = study.choose(screening.number, divergences)
    assert isinstance(found, Proposal)
    return found


def test_a_proposal_decodes_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a study that was read from its journal the first one decodes what was tried and screened, the next ones candidates."""
    problem, solved, solve = Problem(), list[int](), Knapsack.solve
    study = open_study(tmp_path, problem, True)
    run(study, problem, 16)
    noted = [pair for trial in study.memory.get_trials(deepcopy=False) for pair in trial.system_attrs.get(SCREENED, [])]
    study.close()

    def counted(knapsack: Knapsack, limits: Any, multipliers: Any, shares: Any, frames: Any) -> Any:
        solved.append(len(shares))
        return solve(knapsack, limits, multipliers, shares, frames)

    problem = Problem()
    study = open_study(tmp_path, problem, True)
    monkeypatch.setattr(Knapsack, "solve", counted)
    found = study.ask()
    assert isinstance(found, Screening)
    tried = {tuple(parameters.items()) for parameters, _ in noted} | {
        tuple(trial.proposal.parameters.items()) for trial in study.trials if trial.state == "COMPLETE"
    }
    assert len(tried) > 60
    assert len(tried) - len(problem.starts) <= sum(solved) <= len(tried) + len(found.candidates)
    for _ in range(3):
        solved.clear()
        proposal = screened(study, problem, found)
        assert proposal is not None and proposal.allocation is not None
        study.tell(Outcome(number=proposal.number, score=problem.score(proposal.allocation)))
        assert solved == [], "candidates are decoded when they are drawn"
        found = study.ask()
        assert isinstance(found, Screening)
        assert sum(solved) <= len(found.candidates)


def test_a_start_is_proposed_at_once(tmp_path: Path) -> None:
    problem = Problem()
    study = open_study(tmp_path, problem, screening=True)
    for number in range(4):
        proposal = study.ask()
        assert isinstance(proposal, Proposal) and proposal.number == number
        study.tell(Outcome(number=number, score=problem.score(proposal.allocation)))  # type: ignore[arg-type]
    assert isinstance(study.ask(), Screening)


def test_a_choice_is_a_candidate_and_keeps_what_was_measured(tmp_path: Path) -> None:
    problem = Problem()
    study = started(tmp_path, problem)
    screening = screening_of(study)
    divergences = divergences_of(problem, screening)
    proposal = chosen(study, screening, divergences)
    assert proposal.number == screening.number == 8
    assert proposal.allocation in screening.candidates
    stored = proposal.attributes[SCREENED]
    assert [problem.parametrisation.decode(parameters) for parameters, _ in stored] == list(screening.candidates)
    assert [value for _, value in stored] == divergences


def test_a_study_and_its_sampler_alone_propose_the_same(tmp_path: Path) -> None:
    """Measured in between or while the trial is asked for."""
    problem = Problem()
    study = started(tmp_path, problem)
    copied = optuna.create_study(directions=["minimize"] * 2)
    copied.add_trials(study.memory.trials)
    seed = 8 * 50  # of number 8 in a study of seed 0
    screening = screening_of(study)
    alone = problem.ask(copied, seed, screen=problem.divergence)
    assert alone == chosen(study, screening, divergences_of(problem, screening)).allocation


def test_what_is_told_in_between_does_not_change_a_choice(tmp_path: Path) -> None:
    problem = Problem()
    proposals = []
    for between in (0, 3):
        study = started(tmp_path / str(between), problem)
        screening = screening_of(study)
        run(study, problem, 8 + between)
        proposals.append(chosen(study, screening, divergences_of(problem, screening)))
    assert proposals[0] == proposals[1]


def test_screenings_may_end_in_any_order(tmp_path: Path) -> None:
    problem = Problem()
    study = started(tmp_path, problem)
    screenings = [screening_of(study) for _ in range(5)]
    assert [screening.number for screening in screenings] == [8, 9, 10, 11, 12]
    assert len({screening.candidates[0] for screening in screenings}) == 5, "they do not all look at the same"
    found = [chosen(study, screening, divergences_of(problem, screening)) for screening in reversed(screenings)]
    assert [proposal.number for proposal in found] == [12, 11, 10, 9, 8]
    for proposal in found:
        assert proposal.allocation is not None
        study.tell(Outcome(number=proposal.number, score=problem.score(proposal.allocation)))
    assert len({allocation for _, allocation in history(study)}) == 13


def test_a_choice_that_another_trial_took_is_drawn_again(tmp_path: Path) -> None:
    problem = Problem()
    study = started(tmp_path, problem)
    screening = screening_of(study)
    wanted = screening.candidates[2]
    measured = [0.0 if candidate == wanted else float("nan") for candidate in screening.candidates]
    study.enqueue("another", wanted)
    other = study.ask()
    assert isinstance(other, Proposal) and other.allocation == wanted and other.number == 9
    again = study.choose(screening.number, measured)
    assert isinstance(again, Screening) and again.number == 8
    assert set(again.candidates) != set(screening.candidates)
    assert chosen(study, again, divergences_of(problem, again)).number == 8


def test_a_screening_that_was_interrupted_is_asked_for_again(tmp_path: Path) -> None:
    problem = Problem()
    study = started(tmp_path, problem)
    lost = screening_of(study)
    study.close()
    assert screening_of(open_study(tmp_path, problem, screening=True)) == lost


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_candidate_that_could_not_be_measured_is_not_chosen(tmp_path: Path, bad: float) -> None:
    problem = Problem()
    study = started(tmp_path, problem)
    screening = screening_of(study)
    divergences = [bad] * len(screening.candidates)
    divergences[-1] = 3.0  # as bad as can be, and yet
    proposal = chosen(study, screening, divergences)
    assert proposal.allocation == screening.candidates[-1]
    assert [value for _, value in proposal.attributes[SCREENED]] == [3.0]
    run(study, problem, 9)


def test_where_nothing_could_be_measured_the_models_choose(tmp_path: Path) -> None:
    problem = Problem()
    study = started(tmp_path, problem)
    screening = screening_of(study)
    proposal = chosen(study, screening, [float("nan")] * len(screening.candidates))
    assert proposal.allocation == screening.candidates[0]
    assert proposal.attributes[SCREENED] == []


def test_every_candidate_has_a_divergence(tmp_path: Path) -> None:
    problem = Problem()
    study = started(tmp_path, problem)
    screening = screening_of(study)
    with pytest.raises(ValueError, match="shorter"):
        study.choose(screening.number, [1.0])
    with pytest.raises(KeyError):
        study.choose(99, [1.0])
    chosen(study, screening, divergences_of(problem, screening))


def test_what_is_left_of_a_small_space_is_found_and_then_nothing(tmp_path: Path) -> None:
    """Of the widths of one branch eight are in the band; what is asked for at once competes for the last ones."""
    parametrisation = searched(space_of(branches=1), [{"macs": 510}], [0.125])
    study = opened(Study(tmp_path, parametrisation, ("error", "macs"), "additive", 0, True))
    waiting, found = [study.ask() for _ in range(3)], list[int]()
    while waiting:
        if isinstance(waiting[-1], Screening):
            assert {candidate["b0.hidden"] for candidate in waiting[-1].candidates} - {*found}, "what is known is not measured"
        entry = waiting.pop(0)
        if isinstance(entry, Screening):
            waiting.append(study.choose(entry.number, [candidate["b0.hidden"] / 128 for candidate in entry.candidates]))
        elif entry is not None:
            assert entry.allocation is not None
            found.append(entry.allocation["b0.hidden"])
            study.tell(Outcome(number=entry.number, score=score_of(entry.allocation)))
            waiting.append(study.ask())
    assert sorted(found) == [8, 16, 24, 32, 40, 48, 56, 64]


@pytest.mark.slow
@pytest.mark.parametrize("screening", [False, True])
def test_many_trials_at_once_are_all_different(tmp_path: Path, screening: bool) -> None:
    problem = Problem()
    study = open_study(tmp_path, problem, screening)
    run(study, problem, 12)
    found = [screened(study, problem, entry) for entry in [study.ask() for _ in range(64)]]
    assert [proposal.number for proposal in found if proposal] == list(range(12, 76))
    assert len({proposal.allocation for proposal in found if proposal} | {entry for _, entry in history(study)}) == 76


class Pair:
    """Two candidates, the one of whose divergence is smaller is taken."""

    target, gain = 0, 0.5

    def __init__(self, problem: Problem) -> None:
        self._starts = problem.starts[:2]
        self.candidates = tuple(problem.parametrisation.decode(start) for start in self._starts)

    def best(self) -> dict[str, float]:
        return self._starts[0]

    def choose(self, divergences: Sequence[float]) -> dict[str, float]:
        return self._starts[int(np.argmin(divergences))]

    def measured(self, divergences: Sequence[float]) -> Measured:
        return list(zip(self._starts, divergences, strict=True))


class Pairs(RandomSampler):
    drawn = None

    def draw(
        self,
        study: optuna.Study,
        pending: Sequence[Parameters] = (),
        skipped: int = 0,
        errors: Mapping[int, float] | None = None,
    ) -> Pair:
        return Pair(Problem())


def test_any_sampler_that_can_draw_has_its_candidates_screened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, "pairs", lambda seed, parametrisation: Pairs(seed=seed))
    problem = Problem()
    study = opened(Study(tmp_path, problem.parametrisation, ("error", "macs"), "pairs", 0, screening=True))
    screening = study.ask()
    assert isinstance(screening, Screening) and screening.candidates == Pair(problem).candidates
    proposal = study.choose(screening.number, [2.0, 1.0])
    assert isinstance(proposal, Proposal) and (proposal.gain, proposal.known_to) == (0.5, None)
    assert proposal.allocation == screening.candidates[1]
    assert [value for _, value in proposal.attributes[SCREENED]] == [2.0, 1.0]


def test_samplers_that_screen() -> None:
    made = {name: create_sampler(name, 0, Problem().parametrisation) for name in SAMPLERS}
    assert [name for name, sampler in made.items() if isinstance(sampler, ScreeningSampler)] == ["additive"]
