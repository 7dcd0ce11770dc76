"""Ask, tell and resume: nothing finished is lost or run twice, whatever ends the process."""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from local_searches import asked, opened, proposed, score_of, searched, space_of

from search.budgets.parametrisation import Multipliers
from search.run.directory import lock_run
from search.samplers.registry import SAMPLERS, create_sampler
from search.study.study import Study
from search.trial import Outcome, Proposal
from spaces.allocation import Allocation
from spaces.errors import ConfigError, RunError
from spaces.sites import Operator, Site, Space

optuna.logging.set_verbosity(optuna.logging.WARNING)


def parametrisation_of(rivals: bool = False) -> Multipliers:
    return searched(space_of(rivals), [{"macs": 2000}], [0.7])


def open_study(directory: Path, **options: Any) -> Study:
    settings = {"parametrisation": parametrisation_of(), "objectives": ("error", "macs"), "sampler": "tpe", "seed": 0}
    return opened(Study(directory, **{**settings, **options}))


def run(study: Study, trials: int) -> None:
    while len(study.trials) < trials:
        proposal = proposed(study)
        study.tell(Outcome(number=proposal.number, score=score_of(proposal.allocation)))


def history(study: Study) -> list[tuple[int, Allocation | None]]:
    return [(trial.proposal.number, trial.proposal.allocation) for trial in study.trials]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("rivals", [False, True])
def test_every_proposal_is_legal_new_and_in_the_band(tmp_path: Path, sampler: str, rivals: bool) -> None:
    parametrisation = parametrisation_of(rivals)
    study = open_study(tmp_path, sampler=sampler, parametrisation=parametrisation)
    trials = 12 if sampler == "gp" else 30  # its proposals take seconds after the tenth
    run(study, trials)
    allocations = [allocation for _, allocation in history(study)]
    assert len(set(allocations)) == trials
    for allocation in allocations:
        assert allocation is not None
        parametrisation.budgets.space.validate(allocation)
        assert 0.6 < parametrisation.budgets.load(allocation) <= 1.0


@pytest.mark.parametrize("sampler", ["additive", "tpe", "random", "nsga2"])
def test_resumed_proposes_what_an_uninterrupted_one_would(tmp_path: Path, sampler: str) -> None:
    whole = open_study(tmp_path / "whole", sampler=sampler)
    run(whole, 25)
    for stop in (7, 18, 25):
        part = open_study(tmp_path / "part", sampler=sampler)
        run(part, stop)
        part.close()
    assert history(open_study(tmp_path / "part", sampler=sampler)) == history(whole)


def told(proposal: Proposal) -> Outcome:
    """A made-up result: every fifth trial fails, every seventh is stopped at a rung."""
    assert proposal.allocation is not None
    score = replace(score_of(proposal.allocation), kl_before=proposal.number / 10)
    if proposal.number % 5 == 4:
        return Outcome(number=proposal.number, score=None, reason="out of memory")
    if proposal.number % 7 == 6:
        stopped = replace(score, error=None, kl=None, rungs={1: 0.5})
        return Outcome(number=proposal.number, score=stopped, reason="dominated")
    return Outcome(number=proposal.number, score=score)


def started(directory: Path, **options: Any) -> Study:
    """With baselines of both kinds, which are enqueued at every start."""
    study = open_study(directory, **options)
    study.enqueue("dense", study.parametrisation.budgets.space.identity())
    parameters = study.parametrisation.encode(0, 1.0)
    study.enqueue("warm start", study.parametrisation.decode(parameters), parameters)
    return study


def scheduled(directory: Path, schedule: int, kills: int, trials: int, **options: Any) -> dict[int, Proposal]:
    """Proposals of a search with three trials in flight, which end in a random order; it is killed some times."""
    ends, deaths = random.Random(schedule), random.Random(schedule + 1000)
    moments = [deaths.randrange(4 * trials) for _ in range(kills)]
    study, moment = started(directory, **options), 0
    flying: dict[int, Proposal] = {}
    seen: dict[int, Proposal] = {}
    while len(study.trials) < trials:
        if moment in moments:
            study.close()
            study, flying = started(directory, **options), {}
        elif len(flying) < 3:
            proposal = asked(study)
            assert seen.setdefault(proposal.number, proposal) == proposal, "what was interrupted is run as it was"
            flying[proposal.number] = proposal
        else:
            number = ends.choice(sorted(flying))
            study.tell(told(flying.pop(number)))
        moment += 1
    study.close()
    return seen


CRAMPED = searched(space_of(branches=2), [{"macs": 1000}, {"macs": 700}], [0.7, 0.7])  # so that samplers repeat themselves
WIDE = searched(space_of(rivals=True), [{"macs": 2000}], [0.7])


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "schedules"), [("random", 12), ("tpe", 8), ("nsga2", 8), ("additive", 8)])
@pytest.mark.parametrize("parametrisation", [CRAMPED, WIDE], ids=["cramped", "wide"])
def test_killed_with_trials_in_flight_proposes_what_an_uninterrupted_one_would(
    tmp_path: Path, sampler: str, schedules: int, parametrisation: Multipliers
) -> None:
    """Given the same order of results, whatever the moments at which it was killed."""
    trials = 14 if parametrisation is CRAMPED else 40 if sampler == "nsga2" else 20  # of 16 is a generation
    options = {"sampler": sampler, "parametrisation": parametrisation, "screening": True}
    for schedule in range(schedules):
        whole = scheduled(tmp_path / f"whole{schedule}", schedule, 0, trials, **options)
        part = scheduled(tmp_path / f"part{schedule}", schedule, 4, trials, **options)
        assert list(part) == list(whole)
        assert part == whole


def test_a_number_that_was_never_started_is_given_again(tmp_path: Path) -> None:
    """As after a kill while one trial was being proposed and a later one ran."""
    study = open_study(tmp_path, sampler="random")
    first, lost, last = (proposed(study) for _ in range(3))
    for proposal in (first, last):
        study.tell(Outcome(number=proposal.number, score=score_of(proposal.allocation)))
    study.close()
    (study.folder(lost.number) / "allocation.json").unlink()
    again = open_study(tmp_path, sampler="random")
    assert again.ask() == lost
    assert [frozen.state.name for frozen in again.memory.get_trials()] == ["COMPLETE", "RUNNING", "COMPLETE"]
    following = proposed(again)
    assert following.number == 3


def test_the_seed_decides(tmp_path: Path) -> None:
    studies = [open_study(tmp_path / str(index), seed=seed) for index, seed in enumerate((0, 0, 1))]
    for study in studies:
        run(study, 5)
    assert history(studies[0]) == history(studies[1]) != history(studies[2])


def test_baselines_come_first_and_once(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    for _ in range(2):
        study.enqueue("dense", study.parametrisation.budgets.space.identity())
        study.enqueue("uniform", study.parametrisation.budgets.uniform(1.0))
    run(study, 3)
    assert [trial.proposal.label for trial in study.trials] == ["dense", "uniform", None]
    assert study.trials[0].proposal.allocation == study.parametrisation.budgets.space.identity()
    assert set((study.trials[1].proposal.allocation or {}).values()) == {64}
    study.close()
    again = open_study(tmp_path)
    again.enqueue("dense", again.parametrisation.budgets.space.identity())
    proposal = proposed(again)
    assert proposal.label is None, "a baseline that was tried is not tried again"


def test_a_trial_that_was_running_is_run_again(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    run(study, 3)
    lost = proposed(study)
    study.close()
    again = open_study(tmp_path)
    assert again.ask() == lost
    again.tell(Outcome(number=lost.number, score=score_of(lost.allocation)))
    assert [number for number, _ in history(again)] == [0, 1, 2, 3]


def test_several_trials_run_at_once_and_end_in_any_order(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    proposals = [proposed(study) for _ in range(4)]
    numbers = [proposal.number for proposal in proposals]
    assert numbers == [0, 1, 2, 3]
    for proposal in reversed(proposals[1:]):
        study.tell(Outcome(number=proposal.number, score=score_of(proposal.allocation)))
    study.close()
    again = open_study(tmp_path)
    assert again.ask() == proposals[0]
    following = proposed(again)
    assert following.number == 4


def test_how_many_parts_batches_were_split_in_is_kept(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    first = proposed(study)
    study.tell(Outcome(number=first.number, score=replace(score_of(first.allocation), parts=2)))
    study.close()
    score = open_study(tmp_path).trials[0].score
    assert score is not None and score.parts == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_a_failure(tmp_path: Path, bad: float) -> None:
    study = open_study(tmp_path)
    proposal = proposed(study)
    score = score_of(proposal.allocation)
    trial = study.tell(Outcome(number=proposal.number, score=replace(score, error=bad)))
    assert trial.state == "FAIL"
    assert "not finite" in (trial.reason or "")
    run(study, 4)
    study.close()
    assert [trial.state for trial in open_study(tmp_path).trials] == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]


def test_a_torn_last_line_is_cut(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    run(study, 4)
    study.close()
    journal = tmp_path / "study.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "worker_')
    again = open_study(tmp_path)
    assert len(again.trials) == 4
    run(again, 6)
    again.close()
    assert len(open_study(tmp_path).trials) == 6


def test_a_stale_lock_does_not_block(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    run(study, 1)
    study.close()
    (tmp_path / "study.journal.lock").symlink_to(tmp_path / "study.journal")
    run(open_study(tmp_path), 2)
    assert not (tmp_path / "study.journal.lock").is_symlink()


def test_one_writer(tmp_path: Path) -> None:
    with lock_run(tmp_path), pytest.raises(RunError, match="another process"):
        lock_run(tmp_path)
    lock_run(tmp_path).close()


def test_a_broken_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.journal").write_text("not json\n")
    with pytest.raises(RunError, match=r"study\.journal, line 1 cannot be read"):
        open_study(tmp_path)


def test_an_exhausted_space_ends_the_search(tmp_path: Path) -> None:
    site = Site(name="b.hidden", branch="b", kind="ffn_hidden", choices=(8, 16))
    space = Space(name="tiny", branches={"b": (Operator(name="neurons", sites=(site,)),)})
    study = open_study(tmp_path, parametrisation=searched(space, [{"macs": 500}], [1.0]))
    first = proposed(study)
    study.tell(Outcome(number=first.number, score=score_of(first.allocation)))
    assert study.ask() is None


def test_a_sampler_that_repeats_itself_does_not_end_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, "stuck", lambda seed, parametrisation: optuna.samplers.RandomSampler(seed=0))
    study = open_study(tmp_path, sampler="stuck")
    run(study, 5)
    assert len({allocation for _, allocation in history(study)}) == 5


def test_unknown_sampler_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="additive, tpe, nsga2, gp, random"):
        create_sampler("cma", 0, parametrisation_of())


@pytest.mark.slow
def test_kill_at_any_moment_loses_running_trials_only(tmp_path: Path) -> None:
    """A process that is killed with -9 while it tells: every trial that it reported as told is there afterwards."""
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import test_study as t
study = t.open_study(Path({str(tmp_path)!r}))
while True:
    proposal = study.ask()
    study.tell(t.Outcome(number=proposal.number, score=t.score_of(proposal.allocation)))
    print(proposal.number, flush=True)
"""
    told = -1
    for kill_after in (3, 9):
        process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            told = int(line)
            if told >= kill_after:
                break
        process.kill()
        process.wait()
        process.stdout.close()
        study = open_study(tmp_path)
        numbers = [trial.proposal.number for trial in study.trials]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > told
        study.close()
