"""How a launch ends, and goes on: time that is up, Ctrl-C, SIGTERM, a clock that is set back."""

import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from local_launches import TIMES, Silent, config_of
from local_runs import Fails

import run_search
from objectives.runtime.progress import Step
from search import launch, open_run
from search.terminal.display import Display
from search.trial import Proposal

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The trials of a search that nothing interrupts."""
    return launch(config_of(tmp_path_factory.mktemp("whole")), Silent()).trials.drop(columns=TIMES)


class Hourly(Silent):
    """Every trial takes an hour."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.now = 0.0
        clock = SimpleNamespace(monotonic=lambda: self.now)
        for module in ("launch", "deadline"):
            monkeypatch.setattr(sys.modules[f"search.driver.{module}"], "time", clock)

    def started(self, proposal: Proposal) -> None:
        super().started(proposal)
        self.now += 3600.0


def test_no_trial_begins_that_the_hours_do_not_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: pd.DataFrame
) -> None:
    """A third one begins after two hours of two and a half, as it is forecast to take less than a second."""
    reporter = Hourly(monkeypatch)
    run = launch(config_of(tmp_path, max_hours=2.5, audit=4), reporter)
    assert len(run.trials) == 3
    few, late = (notice for notice in reporter.notices if not notice.startswith("the dense model"))
    assert "1 of 9 is left to search with" in few
    assert late == "no time is left within --max-hours after 3 of 9 trials: launch again to go on"
    assert run.audit is None, "for which no time is left either"
    reporter = Hourly(monkeypatch)
    assert len(launch(config_of(tmp_path, max_hours=2.5), reporter).trials) == 6
    reporter = Hourly(monkeypatch)
    pd.testing.assert_frame_equal(launch(config_of(tmp_path, max_hours=2.5), reporter).trials.drop(columns=TIMES), whole)
    assert not any("--max-hours" in notice for notice in reporter.notices)


def test_time_for_no_trial_is_one_line(tmp_path: Path, fails: Fails, capsys: pytest.CaptureFixture[str]) -> None:
    options, run = tmp_path / "options.yaml", tmp_path / "run"
    config_of(tmp_path, trials=2).dump(options)
    line = fails("launch", "--config", options, "--max-hours", "1e-6")
    assert "no time was left for a single trial" in line and "--max-hours" in line
    assert run_search.main(["launch", "--config", str(options), "--max-hours", "1"]) == 0
    assert list(open_run(run).trials["state"]) == ["COMPLETE"] * 2
    capsys.readouterr()
    assert run_search.main(["launch", "--config", str(options), "--max-hours", "1e-6", "--trials", "3"]) == 0
    assert "after 2 of 3 trials" in capsys.readouterr().out


def test_a_clock_that_is_set_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: pd.DataFrame) -> None:
    """Every look at it shows a day before the last one."""
    days = count()

    class Backwards(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Backwards":
            return cls(1990, 1, 1) - timedelta(days=next(days))

    for name, module in list(sys.modules.items()):
        if name.startswith("optuna.") and getattr(module, "datetime", None) is datetime:
            monkeypatch.setattr(module, "datetime", Backwards)
    monkeypatch.setattr("time.time", lambda: 1e9 - 86400.0 * next(days))
    with pytest.raises(KeyboardInterrupt):
        launch(config_of(tmp_path), Silent(stop_at=4))
    run = launch(config_of(tmp_path), Silent())
    pd.testing.assert_frame_equal(run.trials.drop(columns=TIMES), whole)
    assert next(days) > 9, "nobody looked at it, for any trial"


class Launched:
    """A launch in a process of its own, which stays in a trial for some seconds: longer than a signal takes to arrive."""

    def __init__(self, folder: Path) -> None:
        config = config_of(folder, steps=250, trials=4)
        config.dump(folder / "options.yaml")
        self.run = folder / "run"
        self.arguments = ["launch", "--config", str(folder / "options.yaml")]

    def __enter__(self) -> "Launched":
        command = [sys.executable, "-W", "ignore", str(Path(run_search.__file__)), *self.arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def wait_for(self, trial: int) -> None:
        """Until it runs."""
        metrics = self.run / "trials" / f"{trial:04d}" / "metrics.jsonl"
        while not metrics.exists():
            assert self.process.poll() is None, "it ended before that"
            time.sleep(0.01)

    def read_until(self, words: str) -> None:
        assert self.process.stdout is not None
        assert any(words in line for line in self.process.stdout), "it ended before that"

    def ends(self) -> tuple[int, list[str]]:
        """Its exit status, and the lines on stderr that are not a library's."""
        _, stderr = self.process.communicate(timeout=300)
        return self.process.returncode, [line for line in stderr.splitlines() if not line.startswith("[I ")]


INTERRUPTED = (130, ["interrupted; finished trials are kept: the same command continues the run"])


def test_ctrl_c_finishes_the_trial_that_runs(tmp_path: Path) -> None:
    with Launched(tmp_path) as launched:
        launched.wait_for(trial=1)
        launched.process.send_signal(signal.SIGINT)
        launched.read_until("finishing the trials that run; Ctrl-C again stops at once")
        launched.read_until("trial 1 (dense, tail)")
        assert launched.ends() == INTERRUPTED
    assert list(open_run(launched.run).trials["state"]) == ["COMPLETE"] * 2
    assert run_search.main([*launched.arguments, "--trials", "3"]) == 0
    assert list(open_run(launched.run).trials["number"]) == [0, 1, 2]


class Interrupted(Display):
    """A display in which signals arrive in the middle of trial 1, one after another."""

    signals: tuple[signal.Signals, ...] = ()

    def step(self, number: int, step: Step) -> None:
        super().step(number, step)
        if (number, step.step) == (1, 2):
            for each in self.signals:
                signal.raise_signal(each)


@pytest.mark.parametrize("signals", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM,)], ids=["ctrl-c twice", "sigterm"])
def test_stopped_at_once_the_trial_that_ran_is_run_again(
    tmp_path: Path, signals: tuple[signal.Signals, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config_of(tmp_path, trials=4).dump(tmp_path / "options.yaml")
    arguments, run = ["launch", "--config", str(tmp_path / "options.yaml")], tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Interrupted, "signals", signals)
        patch.setattr("search.terminal.display.Display", Interrupted)
        assert (run_search.main(arguments), capsys.readouterr().err.splitlines()) == INTERRUPTED
    assert list(open_run(run).trials["number"]) == [0]
    proposed = (run / "trials" / "0001" / "allocation.json").read_bytes()
    assert run_search.main([*arguments, "--trials", "2"]) == 0
    assert list(open_run(run).trials["number"]) == [0, 1]
    assert (run / "trials" / "0001" / "allocation.json").read_bytes() == proposed
