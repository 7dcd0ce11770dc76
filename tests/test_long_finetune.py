"""Export after a long fine-tune: killed in the middle it goes on, and report and card say what was done."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from local_runs import Fails

from objectives.training.config import TrainingConfig
from search import export, open_run
from search.deploy.model_folder import ExportOptions
from search.runners.resources import MachineConfig
from search.terminal.parser import build_parser, training_options
from spaces import load_compressed
from spaces.errors import DivergedError, RunError

STEPS = 8  # of an epoch: 1,140 images in batches of 128


class Killed(BaseException):
    """As a signal ends a process: nothing may handle it."""


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def at(step: int, error: BaseException | type[BaseException]) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, total: int) -> None:
        if what == "long fine-tune" and done == step:
            raise error

    return progress


@pytest.mark.slow
def test_an_export_that_was_killed_goes_on_from_its_last_epoch(copied: Path) -> None:
    config = TrainingConfig(finetune_epochs=2, finetune_lr=2e-3)
    with pytest.raises(Killed):
        export(open_run(copied), trial=1, progress=at(STEPS + 3, Killed), options=ExportOptions(training=config))
    assert not (copied / "export" / "trial1").exists()
    assert [path.suffix for path in (copied / "export" / ".training").iterdir()] == [".safetensors"]
    steps: list[int] = []

    def watch(what: str, done: int, total: int) -> None:
        if what == "long fine-tune":
            steps.append(done)

    folder = export(open_run(copied), trial=1, progress=watch, options=ExportOptions(training=config))
    assert steps == list(range(STEPS, 2 * STEPS + 1))
    assert [path.name for path in (copied / "export").iterdir()] == ["trial1"]  # and no .training
    report = json.loads((folder / "report.json").read_text())
    long = report["long_finetune"]
    assert (long["finetune_epochs"], long["finetune_lr"], len(long["epochs"])) == (2, 2e-3, 2)
    assert long["error"] == min(error for epoch in long["epochs"] for error in (epoch["error"], epoch["ema_error"]))
    assert long["start_error"] == pytest.approx(open_run(copied).trial(1).error)
    assert report["test_top1"]["after_reload"] == report["test_top1"]["finetuned"]
    assert report["relative_error"]["against"] == "the dense model given the short fine-tune"
    card = (folder / "README.md").read_text()
    assert "it was trained for 2 epochs" in card
    assert "given the short fine-tune, which had no long one" in card
    assert load_compressed(folder).training is False


def test_one_that_diverges_leaves_no_folder(copied: Path) -> None:
    config = TrainingConfig(finetune_epochs=2)
    diverge = at(2, DivergedError("the loss became nan at step 2 of 16: lower --lr"))
    with pytest.raises(RunError, match="trial1 failed: the loss became nan at step 2 of 16: lower --finetune-lr"):
        export(open_run(copied), trial=1, progress=diverge, options=ExportOptions(training=config))
    assert [path for path in (copied / "export").rglob("*") if path.is_file()] == []


def test_flags_have_the_names_of_the_options() -> None:
    words = ["export", "run", "--finetune-epochs", "30", "--mixup", "0", "--aa", "none", "--model-ema-decay", "0.99"]
    expected = TrainingConfig(finetune_epochs=30, mixup=0.0, aa="none", model_ema_decay=0.99)
    assert training_options(build_parser().parse_args(words)) == (expected, MachineConfig())


@pytest.mark.parametrize(
    ("words", "machines"),
    [
        (["--gpus", "4"], MachineConfig(gpus=4, gpus_per_trial=4)),
        (["--parallel", "2"], MachineConfig(gpus=0, gpus_per_trial=2)),
        (["--gpus", "2", "--ray-address", "auto"], MachineConfig(gpus=2, gpus_per_trial=2, ray_address="auto")),
    ],
)
def test_processes_share_one_model(words: list[str], machines: MachineConfig) -> None:
    arguments = build_parser().parse_args(["export", "run", "--finetune-epochs", "1", *words])
    assert training_options(arguments)[1] == machines


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--gpus", "2"], "are for the long fine-tune: give it --finetune-epochs N"),
        (["--finetune-epochs", "1", "--parallel", "0"], "--parallel must be at least 1, got 0"),
        (["--finetune-epochs", "1", "--parallel", "2", "--gpus", "1"], "not allowed with"),
        (["--finetune-epochs", "-1"], "finetune_epochs must be at least 0, got -1"),
    ],
)
def test_wrong_arguments(fails: Fails, finished: Path, words: list[str], text: str) -> None:
    assert text in fails("export", finished, "--trial", "1", *words)
