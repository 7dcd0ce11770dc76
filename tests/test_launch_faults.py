"""What goes wrong in the middle of a search: a candidate, the images, the disk, a trial that takes too long."""

import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from local_images import fill
from local_launches import OPTIONS, TIMES, Silent, config_of
from local_runs import Fails
from torch import nn

from objectives.evaluator import Evaluator
from objectives.runtime.progress import Step
from search import SearchConfig, launch, open_run
from search.run.run import Run
from search.run.summary import RunSummary
from search.runners import job
from search.trial import Proposal, Trial
from spaces.errors import DataError, RunError
from spaces.models.create import ModelConfig, create_model
from spaces.tensors import save_tensors

pytestmark = pytest.mark.slow

DIVERGES = {"lr": 1e30, "clip_grad": 1e30, "opt": "sgd", "steps": 30}


class Then(Silent):
    """Does something when so many trials have ended."""

    def __init__(self, count: int, act: Callable[[], Any]) -> None:
        super().__init__()
        self._count, self._act = count, act

    def finished(self, trial: Trial, summary: RunSummary, count: int) -> None:
        super().finished(trial, summary, count)
        if count == self._count:
            self._act()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The trials of a search in which nothing goes wrong."""
    return trials_of(launch(config_of(tmp_path_factory.mktemp("whole")), Silent()))


def trials_of(run: Run) -> pd.DataFrame:
    return run.trials.drop(columns=TIMES)


def states(directory: Path) -> list[str]:
    return list(open_run(directory).trials["state"])


def stderr_of(directory: Path, number: int) -> str:
    return (directory / "trials" / f"{number:04d}" / "stderr.log").read_text()


def test_a_candidate_of_nan_is_one_failed_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = job.evaluate

    def spoil(evaluator: Evaluator, proposal: Proposal, *arguments: Any) -> Any:
        def spoilt(model: nn.Module) -> nn.Module:
            with torch.no_grad():
                model.get_parameter("head.weight")[0, 0] = float("nan")
            return model

        with pytest.MonkeyPatch.context() as patch:
            if proposal.number == 2:
                build = evaluator.build
                patch.setattr(evaluator, "build", lambda allocation: spoilt(build(allocation)))
            return genuine(evaluator, proposal, *arguments)

    monkeypatch.setattr(job, "evaluate", spoil)
    run = launch(config_of(tmp_path, trials=6), Silent())
    assert list(run.trials["state"]) == ["COMPLETE", "COMPLETE", "FAIL", *["COMPLETE"] * 3]
    assert run.trials["reason"][2].startswith("DivergedError: ")
    assert "DivergedError" in stderr_of(run.directory, 2).splitlines()[-1]
    assert 2 not in {trial.number for trial in run.front}


def test_three_failures_in_a_row_of_one_cause_are_one_line(tmp_path: Path, fails: Fails) -> None:
    config = config_of(tmp_path, **DIVERGES)
    (tmp_path / "run").mkdir()
    config.dump(tmp_path / "options.yaml")
    line = fails("launch", "--config", tmp_path / "options.yaml")
    assert "3 trials in a row failed for the same cause, the last one with: DivergedError: the loss became" in line
    assert "stderr.log of trial 2" in line
    assert states(tmp_path / "run") == ["FAIL"] * 3
    assert (tmp_path / "run" / "report.html").exists()


def test_too_few_trials_for_a_row_and_none_that_succeeds_are_one_line(tmp_path: Path, fails: Fails) -> None:
    config_of(tmp_path, trials=2, **DIVERGES).dump(tmp_path / "options.yaml")
    assert "all 2 trials failed: DivergedError: " in fails("launch", "--config", tmp_path / "options.yaml")


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_vanish_end_the_search_until_they_are_back(tmp_path: Path, workers: int) -> None:
    images, away = tmp_path / "images", tmp_path / "away"
    fill(images / "train", {"cat": range(40), "dog": range(40, 80)})
    fill(images / "val", {"cat": range(100, 110), "dog": range(110, 120)})
    dense = tmp_path / "dense.safetensors"
    model = ModelConfig(model=OPTIONS["model"], num_classes=2, model_kwargs=OPTIONS["model_kwargs"])
    save_tensors(dense, create_model(model).state_dict())
    given = {"dataset": "", "data_dir": str(images), "num_classes": 2, "batch_size": 16, "calibration_size": 32}
    places = {"checkpoint": str(dense), "output": str(tmp_path / "run"), "workers": workers, "least_images": 1}
    config = SearchConfig.from_flat({**OPTIONS, **given, **places, "trials": 6, "cache": 0})
    with pytest.raises(DataError, match=rf"no image at {images}/train/(cat|dog)/\d+.png"):
        launch(config, Then(1, lambda: images.rename(away)))
    assert states(tmp_path / "run") == ["COMPLETE"]
    away.rename(images)
    assert list(launch(config, Silent()).trials["state"]) == ["COMPLETE"] * 6


@pytest.fixture
def room() -> Iterator[Callable[[int], None]]:
    """Sets the largest size of a file, as a disk without room would; as before at the end."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def change(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield change
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


UNLIMITED = resource.RLIM_INFINITY


def test_a_result_without_room_in_the_journal_is_repeated(
    tmp_path: Path, whole: pd.DataFrame, room: Callable[[int], None]
) -> None:
    """The limit is reached in the middle of a line; nothing that has finished is lost."""
    journal = tmp_path / "run" / "study.journal"
    with pytest.raises(RunError, match=r"result of trial 3 could not be recorded.*File too large.*repeats this trial"):
        launch(config_of(tmp_path), Then(3, lambda: room(journal.stat().st_size + 100)))
    room(UNLIMITED)
    assert not journal.read_bytes().endswith(b"\n"), "half a line was written"
    assert not list(tmp_path.rglob(".*partial"))
    reporter = Silent()
    pd.testing.assert_frame_equal(trials_of(launch(config_of(tmp_path), reporter)), whole)
    assert [trial.proposal.number for trial in reporter.trials] == [3, 4, 5, 6, 7, 8]


def test_weights_without_room_end_the_search_until_there_is_some(tmp_path: Path, room: Callable[[int], None]) -> None:
    """Weights of the candidates are beyond the limit, the journal is not."""
    journal = tmp_path / "run" / "study.journal"
    with pytest.raises((RunError, OSError), match=r"3 trials in a row|File too large"):
        launch(config_of(tmp_path), Then(2, lambda: room(journal.stat().st_size + 10_000)))
    room(UNLIMITED)
    before = states(tmp_path / "run")
    assert before[:2] == ["COMPLETE"] * 2
    after = launch(config_of(tmp_path), Silent())
    assert list(after.trials["state"][: len(before)]) == before
    assert (after.trials["state"][len(before) :] == "COMPLETE").all()
    assert len(after.trials) == 9


def test_a_trial_beyond_its_time_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("search.runners.in_process.time", SimpleNamespace(monotonic=lambda: clock.now))

    class Hangs(Silent):
        def step(self, number: int, step: Step) -> None:
            clock.now += 61.0 if number == 2 else 1.0

    run = launch(config_of(tmp_path, trials=4, trial_timeout=60.0), Hangs())
    assert list(run.trials["state"]) == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert run.trials["reason"][2] == "TimeoutError: not done after 61 s, the limit is 60 s"
