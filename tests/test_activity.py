"""What runs is seen from outside, and nothing is where nothing runs."""

import json
import os
import time
from pathlib import Path

import pytest
from local_launches import Silent, config_of

from objectives.runtime.progress import Step
from search import launch, open_run
from search.driver.activity import Activity
from search.layout import RUNNING
from search.run.activity import RunningTrial, running_of
from search.trial import Proposal, Trial


def proposal(number: int) -> Proposal:
    return Proposal(number=number, allocation=None, space="contract", seed=0, label="uniform")


def test_a_trial_is_followed_from_its_start_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100, 2))  # every look at it is two seconds later
    monkeypatch.setattr("search.driver.activity.time.monotonic", lambda: next(clock))
    activity = Activity(tmp_path, steps=100)
    activity.started(proposal(7))
    activity.step(7, Step(step=12, loss=0.5, lr=1e-3))
    (trial,) = running_of(tmp_path)
    assert trial == RunningTrial(number=7, label="uniform", space="contract", since=trial.since, step=12, steps=100)
    activity.rung(7, 25, 0.4)
    (trial,) = running_of(tmp_path)
    assert (trial.step, trial.rung, trial.error) == (25, 25, 0.4)
    activity.ended(Trial(proposal=proposal(7), score=None, reason="lost", ended="2026-11-24T01:00:00+00:00"))
    assert running_of(tmp_path) == ()
    activity.closed()
    assert not (tmp_path / RUNNING).exists()


def test_it_is_written_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr("search.driver.activity.time.monotonic", lambda: now[0])
    activity = Activity(tmp_path, steps=100)
    activity.started(proposal(0))
    activity.step(0, Step(step=1, loss=0.5, lr=1e-3))
    assert running_of(tmp_path)[0].step == 0
    now[0] += 1.0
    activity.waiting()
    assert running_of(tmp_path)[0].step == 1


@pytest.mark.parametrize("host", ["here", "elsewhere"])
def test_what_a_killed_launch_left_does_not_count(tmp_path: Path, host: str) -> None:
    Activity(tmp_path, steps=100).started(proposal(0))
    path = tmp_path / RUNNING
    entry = json.loads(path.read_text())
    assert len(running_of(tmp_path)) == 1
    if host == "here":
        path.write_text(json.dumps({**entry, "pid": 2**22 + 1}))  # beyond the largest number that Linux gives
    else:
        path.write_text(json.dumps({**entry, "host": "elsewhere", "pid": 1}))
        assert len(running_of(tmp_path)) == 1
        long_ago = time.time() - 300
        os.utime(path, (long_ago, long_ago))
    assert running_of(tmp_path) == ()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"host": 1}'])
def test_nonsense_is_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / RUNNING).write_text(text)
    assert running_of(tmp_path) == ()


def test_a_folder_that_is_gone_is_no_reason_to_stop(tmp_path: Path) -> None:
    activity = Activity(tmp_path / "gone", steps=100)
    (tmp_path / "gone").write_text("a file")
    activity.started(proposal(0))
    activity.closed()
    assert (tmp_path / "gone").read_text() == "a file"


@pytest.mark.slow
def test_a_search_tells_what_it_runs(tmp_path: Path) -> None:
    seen: list[tuple[RunningTrial, ...]] = []

    class Looks(Silent):
        def step(self, number: int, step: Step) -> None:
            super().step(number, step)
            seen.append(running_of(tmp_path / "run"))

    run = launch(config_of(tmp_path, trials=3, steps=40, rungs=[0.5]), Looks())
    numbers = {trial.number for found in seen for trial in found}
    assert numbers and numbers <= set(run.trials["number"])
    assert open_run(tmp_path / "run").running == ()
    assert not (tmp_path / "run" / RUNNING).exists()
    assert list(run.trials["ended"]) == sorted(run.trials["ended"])
