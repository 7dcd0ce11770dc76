"""What is said of long work where there is no terminal, by a clock that the tests set."""

import threading
from io import StringIO

import pytest
from local_patience import poll
from rich.console import Console

from search.terminal import display as progress
from search.terminal.display import Display
from search.terminal.lines import Lines


class Said:
    """Lines, and the clock that they go by."""

    def __init__(self) -> None:
        self.now, self._all = 1000.0, list[str]()
        self.lines = Lines(self._all.append, lambda: self.now)

    def after(self, seconds: float) -> list[str]:
        """What is said when so many seconds more have passed, a look at every second of them."""
        for _ in range(int(seconds)):
            self.now += 1
            self.lines.beat()
        return self.new

    @property
    def new(self) -> list[str]:
        """What was said since this was asked last."""
        found, self._all[:] = list(self._all), []
        return found


@pytest.fixture
def said() -> Said:
    return Said()


def test_a_stage_says_that_it_begins_how_far_it_is_every_minute_and_that_it_is_done(said: Said) -> None:
    said.lines.stage("measuring latency", 0, 200)
    assert said.new == ["measuring latency: begins"]
    assert said.after(59) == []
    said.lines.stage("measuring latency", 40, 200)
    assert said.after(1) == ["measuring latency: 40 of 200, 4 min left"], "40 took a minute"
    assert said.after(119) == ["measuring latency: 40 of 200, 8 min left"]
    assert said.after(1) == ["measuring latency: 40 of 200, 12 min left"]
    said.lines.stage("measuring latency", 200, 200)
    assert said.new == ["measuring latency: done in 3 min"]


def test_what_goes_on_from_somewhere_is_forecast_from_what_it_has_done_since(said: Said) -> None:
    said.lines.stage("long fine-tune", 900, 1000)
    said.lines.stage("long fine-tune", 925, 1000)
    assert said.after(60) == ["long fine-tune: begins", "long fine-tune: 925 of 1000, 3 min left"]


def test_work_that_tells_of_nothing_is_told_of_every_minute(said: Said) -> None:
    said.lines.stage("starting a worker", 0, 1)
    assert said.new and said.after(120) == ["starting a worker: for 60 s", "starting a worker: for 2 min"]
    said.lines.stage("starting a worker", 1, 1)
    assert said.new == ["starting a worker: done in 2 min"]
    assert said.after(60) == ["still at work (the last that was said: starting a worker: done in 2 min)"]


def test_the_end_of_a_short_stage_is_not_told_and_it_may_come_again(said: Said) -> None:
    for _ in range(2):
        said.lines.stage("calibration pass", 0, 8)
        said.lines.stage("calibration pass", 8, 8)
    assert said.new == ["calibration pass: begins"] * 2
    said.lines.stage("computing factors", 24, 24)
    assert said.new == ["computing factors: done"]


def test_a_stage_within_another(said: Said) -> None:
    said.lines.stage("fine-tune", 0, 10)
    said.lines.stage("dense model", 0, 2)
    assert said.after(60)[-1] == "dense model: 0 of 2, begun 60 s ago"
    said.lines.stage("dense model", 2, 2)
    said.lines.stage("fine-tune", 5, 10)
    assert said.after(60) == ["dense model: done in 60 s", "fine-tune: 5 of 10, 2 min left"]
    said.lines.stage("dense model", 0, 2)
    said.lines.stage("fine-tune", 6, 10)  # the one within has ended without a word
    said.lines.stage("fine-tune", 10, 10)
    assert said.new == ["dense model: begins", "fine-tune: done in 2 min"]


def test_a_long_trial_says_that_it_begins_and_how_far_it_is(said: Said) -> None:
    said.lines.search(100, 1200.0)
    said.lines.started(0, "trial 0 (dense)")
    assert said.new == ["trial 0 (dense): begins"]
    assert said.after(60) == ["trial 0 (dense): no step taken yet, begun 60 s ago"]
    said.lines.step(0, 40, 1.2345)
    assert said.after(60) == ["trial 0 (dense): step 40 of 100, loss 1.234, begun 2 min ago"]
    said.lines.step(0, 100, 1.0)
    assert said.after(60) == ["trial 0 (dense): all 100 steps taken, being measured, begun 3 min ago"]
    said.lines.finished(0, "trial 0 (dense): keeps 100 %")
    assert said.new == ["trial 0 (dense): keeps 100 %"]


def test_short_trials_are_told_of_when_they_end(said: Said) -> None:
    said.lines.search(100, 2.0)
    for number in range(6):
        said.lines.started(number, f"trial {number}")
    assert said.new == []
    said.lines.step(3, 1, 0.5)
    assert said.after(60) == [
        "trial 0: no step taken yet, begun 60 s ago; trial 1: no step taken yet, begun 60 s ago; "
        "trial 2: no step taken yet, begun 60 s ago; trial 3: step 1 of 100, loss 0.500, begun 60 s ago; and 2 more"
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_display_looks_again_and_again_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    """From a thread of its own: what works tells of nothing in the meantime."""
    looked, before = threading.Event(), threading.active_count()
    monkeypatch.setattr(progress, "PULSE", 0.0)
    monkeypatch.setattr(Lines, "beat", lambda lines: looked.set())
    display = Display(Console(file=StringIO(), force_terminal=terminal))
    with display:
        assert looked.wait(0 if terminal else 60) is not terminal
    assert poll(lambda: threading.active_count() <= before)


def test_a_bar_of_a_stage_that_comes_again_begins_anew() -> None:
    text = StringIO()
    with Display(Console(file=text, force_terminal=True, width=120)) as display:
        for _ in range(2):
            for done in range(3):
                display.stage("calibration", done, 2)
            (task,) = display.bars.tasks
            assert (task.finished, task.visible) == (True, False)
        display.stage("calibration", 1, 2)
        assert (task.completed, task.finished, task.visible) == (1, False, True)
