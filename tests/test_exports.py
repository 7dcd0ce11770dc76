"""Points of a real run exported: several, on a budget, again, elsewhere, and whatever ends it half way."""

import json
import resource
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from local_images import fill
from local_launches import OPTIONS, Silent, config_of
from local_runs import Fails, content
from torch import nn

import run_search
from objectives.data.loaders import Data
from objectives.deploy.config import FormatConfig
from objectives.error import evaluate
from objectives.outcomes import Outcomes
from search import SearchConfig, export, launch, open_run
from search.deploy import session as exports
from search.deploy.model_folder import ExportOptions
from search.deploy.points import Point, wishes
from search.layout import outcomes_of
from search.run.run import Run
from search.run.summary import RunSummary, front_point
from search.run.summary_file import write_summary
from search.terminal.parser import build_parser
from search.trial import Trial
from spaces import load_compressed
from spaces.errors import RunError
from spaces.folder.compressed import save_compressed
from spaces.models.create import ModelConfig, create_model, preprocessing
from spaces.tensors import save_tensors

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The dense model and warm starts at two budgets and below; a size more or less is less than a percent of the MACs."""
    folder = tmp_path_factory.mktemp("whole")
    return launch(config_of(folder, trials=10, baselines=[], target=["flops=60%", "flops=40%"], multiple=1), Silent())


@pytest.fixture
def run(whole: Run, tmp_path: Path) -> Run:
    """A copy, so that no test finds what another has exported."""
    shutil.copytree(whole.directory, tmp_path / "run")
    return Run(tmp_path / "run")


def gap_of(run: Run) -> str:
    """A target that the best trial under it leaves much of, and another trial is above."""
    return f"flops={100 * run.front[0].kept['macs'] + 5:.0f}%"


def error_of(run: Run, folder: Path) -> float:
    """On the search split, of the folder as its user loads it."""
    config = run.config
    data = Data(config.data, preprocessing(create_model(config.model), config.model))
    model: nn.Module = load_compressed(folder)
    return evaluate(model, data.evaluation("search")).error


def origin_of(folder: Path) -> dict[str, Any]:
    """What report and configuration say alike."""
    report, config = (json.loads((folder / name).read_text()) for name in ("report.json", "config.json"))
    assert report["origin"] == config["origin"]
    found: dict[str, Any] = report["origin"]
    assert found["description"] in (folder / "README.md").read_text()
    return found


def command(*arguments: str | Path) -> int:
    return run_search.main(["export", *map(str, arguments)])


def rated(run: Run, error: float) -> Run:
    """The run with this error of all its trials in the table."""
    run.trials.assign(error=error).to_csv(run.directory / "trials.csv", index=False)
    return Run(run.directory)


def answered(run: Run, number: int, wrong: bool) -> None:
    """Say that a trial answered every image of the search split so."""
    path = outcomes_of(run.directory, number)
    before = Outcomes.load(path)
    Outcomes(torch.full_like(before.wrong, wrong), before.cross_entropy, before.kl).save(path)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """Points that were exported, to folders of the dense model, measured by nobody: that takes most of the time."""
    points: list[Point] = []

    def write(folder: Path, run: Run, point: Point, evaluator: Any, *_: Any) -> None:
        points.append(point)
        save_compressed(folder, evaluator.dense.model, {
            "architecture": run.config.model.model,
            "model_args": {},
            "num_classes": None,
            "label_names": None,
            "space": point.space,
            "multiple": 1,
            "allocation": dict(point.allocation),
            "pretrained_cfg": evaluator.dense.preprocessing,
            "pictures": evaluator.dense.data.reading.to_json(),
            "origin": point.origin(evaluator.dense.fingerprint),
            "training": None,
        })  # fmt: skip
        (folder / "README.md").write_text("---\n---\ncard\n```\n")

    monkeypatch.setattr(exports, "write_export", write)
    return points


# A point on the budget


def test_a_point_on_the_budget_is_exported_as_it_was_measured_and_marked(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run, target = rated(run, 0.99), gap_of(run)
    best, limit = run.best(target), run.budget(target).limits["macs"]
    assert best.costs["macs"] < 0.95 * limit, "a gap"
    before = content(run.directory / "front")
    answered(run, best.number, wrong=True)
    assert command(run.directory, "--target", target, "--exact") == 0
    (folder,) = (run.directory / "export").iterdir()
    origin, text = origin_of(folder), " ".join(capsys.readouterr().out.split())
    assert folder.name == f"{target.replace('=', '').rstrip('%')}-exact"
    assert (origin["trial"], origin["label"], origin["evaluated_by_search"]) == (None, "materialised", False)
    assert origin["instead_of"] == {"trial": best.number, "search_error": 0.99}
    assert error_of(run, folder) == pytest.approx(origin["search_error"])
    report = json.loads((folder / "report.json").read_text())
    assert 0.97 * limit < origin["costs"]["macs"] == report["macs"]["compressed"] <= limit
    assert "not evaluated by the search" in text
    assert "; taken" in text
    assert content(run.directory / "front") == before
    assert command(run.directory, "--target", target, "--exact") == 0
    assert "is there already" in capsys.readouterr().out


def test_where_it_is_worse_the_trial_is_exported_and_that_is_said(
    run: Run, written: list[Point], capsys: pytest.CaptureFixture[str]
) -> None:
    target = gap_of(run)
    answered(run, run.best(target).number, wrong=False)
    assert command(run.directory, "--target", target, "--exact") == 0
    (folder,) = (run.directory / "export").iterdir()
    assert folder.name == f"{target.replace('=', '').rstrip('%')}"
    assert [point.number for point in written] == [run.best(target).number]
    assert "; the trial is taken" in " ".join(capsys.readouterr().out.split())


def test_a_gap_is_told_where_nothing_was_asked(run: Run, written: list[Point]) -> None:
    told: list[str] = []
    for target in (gap_of(run), f"flops={run.front[0].kept['macs'] + 0.0001:.4%}"):
        export(run, target, notice=told.append)
    assert len([text for text in told if "of the target; --exact builds a point on it" in text]) == 1


def test_exact_needs_a_target(run: Run, fails: Fails) -> None:
    assert "--exact builds a point on a target" in fails("export", run.directory, "--trial", 1, "--exact")


# Several, again, elsewhere


def test_the_whole_front_is_exported_but_for_what_fails(
    run: Run,
    tmp_path: Path,
    written: list[Point],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """There is no trial 77, and the disk is full when trial 0 is written."""
    write = vars(exports)["write_export"]  # that of `written`

    def fail(folder: Path, run: Run, point: Point, *rest: Any) -> None:
        if point.number == 0:
            raise OSError("no room")
        write(folder, run, point, *rest)

    monkeypatch.setattr(exports, "write_export", fail)
    front = [1, 2]
    shutil.copytree(run.directory, tmp_path / "another")
    write_summary(tmp_path / "another", replace(run.summary, front=tuple(front_point(run.trial(number)) for number in front)))
    run = open_run(tmp_path / "another")
    assert command(run.directory, "--all-front", "--trial", "0", "77", "--output", tmp_path / "out") == 2
    out, err = capsys.readouterr()
    assert err.splitlines() == [f"error: 2 of {2 + len(front)} points could not be exported; trial 0: no room"]
    assert [point.number for point in written] == front
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"trial{number}" for number in front}
    assert not (run.directory / "export").exists()
    assert all(text in out for text in ("trial 77", "no room", *(f"trial{number}" for number in front)))
    monkeypatch.setattr(exports, "load_dense", None)  # nothing is loaded where nothing is to be done
    assert command(run.directory, "--trial", *map(str, front), "--output", tmp_path / "out") == 0
    assert capsys.readouterr().out.count("was there") == len(front)


def test_a_folder_is_written_again_where_it_is_broken_or_another_point_or_told(run: Run, written: list[Point]) -> None:
    folder = export(run, trial=1)
    assert (export(run, trial=1), len(written)) == (folder, 1)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    export(run, trial=1)
    assert (len(written), weights.read_bytes()) == (2, whole)
    export(run, trial=1, options=ExportOptions(force=True))
    assert len(written) == 3
    half = ExportOptions(output=FormatConfig(dtype="bf16"))
    export(run, trial=1, options=half)
    assert len(written) == 4, "another dtype is another folder"
    export(rated(run, 0.5), trial=1)
    assert len(written) == 5, "the table says something else of it now"
    export(Run(run.directory), trial=1)
    assert len(written) == 5


def test_weights_that_the_search_has_dropped_are_made_again_outside_of_the_run(run: Run) -> None:
    """As they are for a trial that leaves the front while a search runs."""
    shutil.rmtree(run.directory / "front")
    number = run.front[0].number
    folder = export(run, trial=number)
    trial, report = run.trial(number), json.loads((folder / "report.json").read_text())
    assert error_of(run, folder) == pytest.approx(trial.error)
    assert trial.expected is not None
    expected, measured = report["expected_error"], 1 - report["test_top1"]["finetuned"]
    inside = trial.expected.low <= measured <= trial.expected.high
    assert (expected["mean"], expected["measured"], expected["within"]) == (trial.expected.mean, measured, inside)
    difference = report["difference"]
    assert difference["mean"] == pytest.approx(measured - 1 + report["test_top1"]["dense_finetuned"])
    assert difference["low"] <= difference["mean"] <= difference["high"]
    card = " ".join((folder / "README.md").read_text().split())
    assert f"on the test split {100 * measured:.2f} %: {'within' if inside else 'outside'}" in card
    assert "exact interval of 95 % for the same images" in card
    assert not (run.directory / "front").exists()
    assert [path.name for path in (run.directory / "export").iterdir()] == [f"trial{number}"]


def test_a_given_allocation_is_measured_and_exported(run: Run, tmp_path: Path) -> None:
    sizes = dict(run.trial(2).allocation)
    site = max(sizes, key=sizes.__getitem__)
    (tmp_path / "mine own.json").write_text(json.dumps({"number": 2, "space": "contract", "allocation": {**sizes, site: 1}}))
    folder = export(run, allocation=tmp_path / "mine own.json")
    origin = origin_of(folder)
    assert (folder.name, origin["trial"], origin["label"]) == ("allocation-mine-own", None, "given")
    assert error_of(run, folder) == pytest.approx(origin["search_error"])
    assert json.loads((folder / "config.json").read_text())["allocation"] == {**sizes, site: 1}
    assert export(run, allocation=tmp_path / "mine own.json") == folder
    command = shlex.split(json.loads((folder / "report.json").read_text())["command"])
    assert build_parser().parse_args(command[2:]).allocation == [str(tmp_path / "mine own.json")]


def test_two_points_of_one_folder_name_are_not_mixed_up(run: Run, tmp_path: Path, written: list[Point]) -> None:
    files = [tmp_path / name / "mine.json" for name in ("one", "two")]
    for number, file in enumerate(files, start=1):
        file.parent.mkdir()
        file.write_text(json.dumps({"allocation": dict(run.trial(number).allocation)}))
    one, two = exports.export_points(run, wishes(run, allocations=files))
    assert (one.problem, [point.number for point in written]) == (None, [1])
    assert two.problem is not None
    assert f"{files[1]} and {files[0]} would both be {run.directory / 'export' / 'allocation-mine'}" in two.problem


def test_a_run_is_exported_while_it_is_searched(tmp_path: Path, written: list[Point]) -> None:
    class Exporting(Silent):
        def finished(self, trial: Trial, summary: RunSummary, count: int) -> None:
            super().finished(trial, summary, count)
            if count == 2:
                export(Run(tmp_path / "run"), trial=1)

    run = launch(config_of(tmp_path, trials=3), Exporting())
    assert [point.number for point in written] == [1]
    assert len(run.trials) == 3
    assert (run.directory / "export" / "trial1").exists()


def test_other_files_are_not_replaced(run: Run, tmp_path: Path, fails: Fails) -> None:
    mine = tmp_path / "out" / "trial1" / "mine"
    mine.mkdir(parents=True)
    line = fails("export", run.directory, "--trial", 1, "--output", tmp_path / "out", "--force")
    assert "trial1 is there and is no export: move it, or choose another --output" in line
    assert mine.exists()


# What ends an export half way


@pytest.mark.parametrize("kept", [True, False])
def test_a_full_disk_leaves_what_was_there(run: Run, fails: Fails, kept: bool) -> None:
    """Whether the weights that cannot be written are the export's, or first those that are made again."""
    number = run.front[0].number
    if not kept:
        shutil.rmtree(run.directory / "front")
    folder = run.directory / "export" / f"trial{number}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("an export")
    before, limits = content(run.directory), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        line = fails("export", run.directory, "--trial", number, "--force")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{'model' if kept else f'trial{number}'}.safetensors: File too large: " in line
    assert content(run.directory) == before


def test_a_killed_export_leaves_no_folder_and_the_next_one_tidies_up(run: Run, tmp_path: Path, written: list[Point]) -> None:
    out, number = tmp_path / "out", run.front[0].number
    arguments = ["export", str(run.directory), "--trial", str(number), "--output", str(out)]
    process = subprocess.Popen(
        [sys.executable, "run_search.py", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not list(out.glob(".*.partial/model.safetensors")):  # it is to be loaded in another process before it is done
        assert process.poll() is None, "it ended before"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert {path.name for path in out.iterdir()} == {f".{name}.{process.pid}.partial" for name in (f"trial{number}", "weights")}
    assert export(run, trial=number, options=ExportOptions(into=out)) == out / f"trial{number}"
    assert [path.name for path in out.iterdir()] == [f"trial{number}"]


def test_images_that_have_moved(tmp_path: Path, fails: Fails, written: list[Point]) -> None:
    for split, numbers in (("train", (range(40), range(40, 80))), ("val", (range(100, 110), range(110, 120)))):
        fill(tmp_path / "images" / split, dict(zip(("cat", "dog"), numbers, strict=True)))
    model = ModelConfig(model=OPTIONS["model"], num_classes=2, model_kwargs=OPTIONS["model_kwargs"])
    save_tensors(tmp_path / "dense.safetensors", create_model(model).state_dict())
    given = {"dataset": "", "data_dir": str(tmp_path / "images"), "num_classes": 2, "batch_size": 16, "calibration_size": 32}
    given["least_images"] = 1
    places = {"checkpoint": str(tmp_path / "dense.safetensors"), "output": str(tmp_path / "run"), "workers": 0}
    launch(SearchConfig.from_flat({**OPTIONS, **given, **places, "trials": 3}), Silent())
    (tmp_path / "images").rename(tmp_path / "moved")
    line = fails("export", tmp_path / "run", "--target", "flops=60%")
    assert f"are no longer in {tmp_path / 'images'}: say with --data-dir where they are" in line
    assert not list((tmp_path / "run").glob("export/*"))
    assert command(tmp_path / "run", "--target", "flops=60%", "--data-dir", tmp_path / "moved") == 0
    assert len(written) == 1


def test_another_model_under_the_name_of_the_runs_is_refused(run: Run, tmp_path: Path) -> None:
    dense = create_model(replace(run.config.model, checkpoint=None))
    save_tensors(tmp_path / "other.safetensors", dense.state_dict())
    text = (
        (run.directory / "config.yaml")
        .read_text()
        .replace(str(run.config.model.checkpoint), str(tmp_path / "other.safetensors"))
    )
    (run.directory / "config.yaml").write_text(text)
    with pytest.raises(RunError, match="was searched with other weights or images"):
        export(Run(run.directory), trial=1)
