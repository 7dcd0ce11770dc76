"""What trials are forecast from: those that finished where this launch runs, or one that is timed."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from objectives.score import Score
from search.config import SearchConfig
from search.driver.outlook import Outlook
from search.driver.pace import NOTHING, Pace
from search.layout import ENVIRONMENT, RUN_FORMAT
from search.terminal.display import forecast_line
from search.trial import Proposal, Trial
from spaces.allocation import Allocation
from spaces.errors import RunError

CONFIG, HERE = SearchConfig.from_flat({"device": "cpu", "parallel": 2}), ["host cpu (x86_64)"]
SCORE = Score(error=0.25, error_before=0.4, kl=0.1, kl_before=0.2, costs={"macs": 400, "params": 120}, steps=100, seconds=3.0)
PROPOSAL = Proposal(number=0, allocation=Allocation({"b.qk": 8}), space="contract", seed=0)


def trial(seconds: float, ended: str = "2100-01-01T00:00:00+00:00", **changes: Any) -> Trial:
    return replace(Trial(proposal=PROPOSAL, score=replace(SCORE, seconds=seconds), reason=None, ended=ended), **changes)


TRIALS = [trial(3.0), trial(9.0), trial(4.0)]


def seconds(run: Path, config: SearchConfig = CONFIG, devices: list[str] = HERE, trials: list[Trial] = TRIALS) -> list[float]:
    """Of a launch, which writes down what it runs on."""
    pace = Pace(run, config, devices)
    found = pace.seconds(trials)
    pace.write({"devices": devices})
    return found


def test_trials_that_ran_where_this_launch_runs_are_counted(tmp_path: Path) -> None:
    assert seconds(tmp_path) == [], "nobody knows where they ran"
    assert seconds(tmp_path) == [3.0, 9.0, 4.0]
    assert json.loads((tmp_path / ENVIRONMENT).read_text())["devices"] == HERE


@pytest.mark.parametrize(
    ("options", "devices"),
    [
        ({}, ["host cuda:0 (NVIDIA H100)"]),
        ({"parallel": 1}, HERE),
        ({"threads": 4}, HERE),
        ({"workers": 1}, HERE),
    ],
)
def test_on_another_device_or_beside_others_they_say_nothing(
    tmp_path: Path, options: dict[str, Any], devices: list[str]
) -> None:
    other = SearchConfig.from_flat({**CONFIG.flat(), **options})
    seconds(tmp_path)
    assert seconds(tmp_path, other, devices) == []
    assert seconds(tmp_path, other, devices) == [3.0, 9.0, 4.0]
    assert seconds(tmp_path) == [], "and back"


def test_those_before_the_move_are_not_of_the_new_place(tmp_path: Path) -> None:
    for devices in (["elsewhere"], HERE):
        seconds(tmp_path, devices=devices)
    assert seconds(tmp_path, trials=[trial(99.0, ended="2001-01-01T00:00:00+00:00"), trial(3.0)]) == [3.0]


def test_trials_unlike_others_say_nothing(tmp_path: Path) -> None:
    seconds(tmp_path)
    recipe = trial(50.0, proposal=replace(PROPOSAL, recipe="vtp"))
    stopped = trial(1.0, score=replace(SCORE, error=None), reason="stopped")
    failed = trial(1.0, score=None, reason="failed")
    assert seconds(tmp_path, trials=[recipe, stopped, failed, trial(5.0)]) == [5.0]


@pytest.mark.parametrize(
    "text", ["{", "[]", f'{{"format": {RUN_FORMAT}, "since": 1}}', f'{{"format": {RUN_FORMAT}}}', "[" * 10_000]
)
def test_a_broken_file_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / ENVIRONMENT).write_text(text)
    assert seconds(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "words"), [(RUN_FORMAT + 1, "newer version"), (RUN_FORMAT - 1, "older"), (None, "no format")]
)
def test_conditions_of_another_format_are_refused(tmp_path: Path, number: int | None, words: str) -> None:
    (tmp_path / ENVIRONMENT).write_text(json.dumps({"format": number}))
    with pytest.raises(RunError, match=rf"env\.json .*{words}"):
        Pace(tmp_path, CONFIG, HERE)


def never() -> Any:
    pytest.fail("timed again")


def taking(seconds: float, weights: int) -> Any:
    """Times a trial."""
    return lambda: SimpleNamespace(seconds=seconds, weights=weights)


def test_the_median_is_forecast_and_the_slowest_is_the_limit(tmp_path: Path) -> None:
    seconds(tmp_path)
    found = Pace(tmp_path, CONFIG, HERE).expect(TRIALS, 20, 100, never)
    assert (found.seconds, found.slowest, found.weights, found.recorded) == (4.0, 9.0, 400, 3)


def test_a_trial_is_timed_once_under_the_same_conditions(tmp_path: Path) -> None:
    pace = Pace(tmp_path, CONFIG, HERE)
    assert pace.expect([], 0, 100, never) == NOTHING, "no trial is wanted"
    timed = pace.expect([], 20, 100, taking(2.5, 77))
    assert (timed.seconds, timed.slowest, timed.weights, timed.recorded) == (2.5, 2.5, 77, 0)
    pace.write({})
    assert Pace(tmp_path, CONFIG, HERE).expect([], 20, 100, never) == timed
    for devices, params in ((["elsewhere"], 100), (HERE, 101)):
        other = Pace(tmp_path, CONFIG, devices)
        found = other.expect([], 20, params, taking(7.5, 99))
        assert found.seconds == 7.5
    Pace(tmp_path, CONFIG, HERE).write({})
    assert Pace(tmp_path, CONFIG, HERE).expect([], 20, 100, never) == timed, "kept by a launch that timed none"


@pytest.mark.parametrize("timed", [5, {}, {"seconds": -1, "weights": 77, "params": 100}, {"seconds": "2", "weights": 77}])
def test_a_forecast_that_was_not_written_here_is_made_anew(tmp_path: Path, timed: Any) -> None:
    seconds(tmp_path)
    path = tmp_path / ENVIRONMENT
    path.write_text(json.dumps({**json.loads(path.read_text()), "timed": timed}))
    found = Pace(tmp_path, CONFIG, HERE).expect([], 20, 100, taking(7.5, 99))
    assert found.seconds == 7.5


def test_the_launch_says_what_it_is_from() -> None:
    for recorded, words in ((0, "forecast: 4.0 s"), (1, "forecast from 1 finished trial: "), (12, "from 12 finished trials: ")):
        outlook = Outlook(trials=20, finished=12, workers=1, seconds=4.0, weights=400, free=10**9, recorded=recorded)
        assert words in forecast_line(outlook)


def test_one_trial_is_no_plural() -> None:
    outlook = Outlook(trials=13, finished=12, workers=2, seconds=4.0, weights=400, free=10**9, recorded=0)
    assert "1 trial on 2 workers takes " in forecast_line(outlook)


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (0, "batches need 2 MB, and every trial makes them anew (see --cache)"),
        (1_000_000, "batches need 2 MB, of which 1 MB are kept (see --cache)"),
        (2_000_100, "; batches 2 MB"),
    ],
)
def test_what_is_kept_of_the_batches_is_told(kept: int, words: str) -> None:
    sizes = {"weights": 400, "free": 10**9, "kept": kept, "needed": 2_000_000}
    assert forecast_line(Outlook(trials=20, finished=0, workers=1, seconds=4.0, **sizes)).endswith(words)
