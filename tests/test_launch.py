"""The whole path on real digits with a small untrained model: launch, kill, continue, read, export, reload."""

import json
import shutil
import subprocess
import sys
from contextlib import suppress
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from local_launches import FRAMES, TIMES, Silent, config_of
from rich.console import Console
from torch import nn

from objectives import evaluator
from objectives.data.loaders import Data
from objectives.error import evaluate
from objectives.training.finetune import finetune
from search import export, launch, open_run
from search.report.verdict import expected_text
from search.run.run import Run
from search.study import replay
from search.terminal.display import Display
from search.trial import DENSE, DENSE_TAIL
from spaces import load_compressed
from spaces.errors import CheckpointError, RunError, TargetError
from spaces.folder.description import FOLDER_FORMAT
from spaces.models.create import create_model, preprocessing

pytestmark = pytest.mark.slow

REFERENCES = (DENSE, DENSE_TAIL)  # they keep all of the widths, whatever the target


@pytest.fixture(scope="module")
def watched() -> Silent:
    """Who is told of the search and of the export."""
    return Silent()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, watched: Silent) -> Run:
    return launch(config_of(tmp_path_factory.mktemp("whole")), watched)


def test_the_run_directory_is_complete(run: Run) -> None:
    for name in (
        "config.yaml",
        "env.json",
        "study.journal",
        "trials.csv",
        "pareto.csv",
        "pareto.json",
        "report.html",
        "pareto.png",
    ):
        assert (run.directory / name).stat().st_size > 0, name
    assert not list(run.directory.glob(".*partial"))
    metrics = (run.directory / "trials" / "0003" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line).get("step") for line in metrics] == [1, 2, 3, None]


def test_a_run_knows_its_profile(run: Run, tmp_path: Path) -> None:
    """Where it was measured: a search starts from the closed form unless told."""
    assert run.profile is None
    profile = launch(config_of(tmp_path, trials=1, measured_profile=True), Silent()).profile
    assert profile is not None
    assert profile.images == 64
    assert set(profile.errors) == {site.name for site in run.space.sites}


def test_the_table_holds_every_trial(run: Run) -> None:
    table = run.trials
    assert list(table["number"]) == list(range(9))
    assert list(table["label"][:8]) == [*REFERENCES, *["warm start"] * 3, *["uniform"] * 3]
    assert table["label"][8:].isna().all()
    assert (table["state"] == "COMPLETE").all()
    assert table["macs_kept"][0] == 1.0
    assert table["macs_kept"][1] < table["params_kept"][1] == 1.0, "the tail costs no weight"
    assert table["error"][1] == table["error"][0], "and is exact"
    assert (table["macs_kept"][2:] <= 0.6).all()
    assert (table["macs_kept"][2:] > 0.6 * 0.5 - 0.03).all()
    for trial in run.ended:
        run.space.validate(trial.allocation)


def test_the_front_and_the_best_follow_from_the_table(run: Run) -> None:
    front, table = [(trial.figure("macs"), trial.objective("error")) for trial in run.front], run.trials
    assert [macs for macs, _ in front] == sorted(macs for macs, _ in front)
    assert [error for _, error in front] == sorted((error for _, error in front), reverse=True)
    for _, row in table.iterrows():
        assert any(macs <= row["macs"] and error <= row["expected"] for macs, error in front)
    best = run.best("flops=60%")
    assert best.objective("error") == table[table["macs_kept"] <= 0.6]["expected"].min()
    assert run.summary.best == (best.number,)
    weights = {path.stem for path in (run.directory / "front").glob("*.safetensors")}
    assert 0 in set(run.trials["number"])
    assert weights <= {f"{trial.number:04d}" for trial in run.front if trial.number}, "none of the dense reference"
    assert not list(run.directory.glob("trials/*/weights.safetensors"))


def test_a_target_that_nobody_keeps_names_the_nearest(run: Run) -> None:
    with pytest.raises(TargetError, match=r"the nearest is trial \d+ with .* MACs"):
        run.best("flops=25%")
    with pytest.raises(RunError, match="has no trial 99"):
        run.trial(99)


def test_interrupted_and_continued_equals_uninterrupted(run: Run, tmp_path: Path) -> None:
    for stop in (2, 6):
        with pytest.raises(KeyboardInterrupt):
            launch(config_of(tmp_path), Silent(stop_at=stop))
        assert len(open_run(tmp_path / "run").trials) == stop
    reporter = Silent()
    again = launch(config_of(tmp_path), reporter)
    assert [trial.proposal.number for trial in reporter.trials] == [6, 7, 8]
    assert reporter.outlook is not None
    assert (reporter.outlook.recorded, "forecast" in reporter.stages) == (6, False)
    assert reporter.outlook.seconds == pytest.approx(again.trials["seconds"][:6].median())
    pd.testing.assert_frame_equal(again.trials.drop(columns=TIMES), run.trials.drop(columns=TIMES))
    assert launch(config_of(tmp_path), Silent()).trials.equals(again.trials), "a finished run is left as it is"


def test_what_the_run_knows_is_not_computed_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a finished run nor in one whose first trial had not ended; and every line of its journal is checked once."""
    with pytest.raises(KeyboardInterrupt):
        launch(config_of(tmp_path), Silent(stop_at=0))
    shutil.copytree(run.directory, tmp_path / "done")
    checked: list[bytes] = []
    genuine = replay.number_in

    def number_in(line: bytes, first: bool) -> int | None:
        checked.append(line)
        return genuine(line, first)

    monkeypatch.setattr(replay, "number_in", number_in)
    for folder, stop in (("run", 1), ("done", None)):
        journal = (tmp_path / folder / "study.journal").read_bytes()
        reporter = Silent(stop)
        with suppress(KeyboardInterrupt):
            launch(config_of(tmp_path, output=str(tmp_path / folder)), reporter)
        assert len(reporter.trials) == (stop or 0)
        assert set(reporter.stages) == {"loading"}, "no pass of the dense model, no step of a forecast"
        assert b"".join(checked) == journal
        checked.clear()


def test_failed_trials_are_recorded_and_the_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = finetune

    def sometimes(model: nn.Module, *arguments: Any, **options: Any) -> Any:
        if sum(p.numel() for p in model.parameters()) < 15_000:
            raise RuntimeError("out of\nmemory <b>")
        return genuine(model, *arguments, **options)

    monkeypatch.setattr(evaluator, "finetune", sometimes)
    run = launch(config_of(tmp_path, trials=6), Silent())
    failed = run.trials[run.trials["state"] == "FAIL"]
    assert 0 < len(failed) < 6
    assert set(failed["reason"]) == {"RuntimeError: out of memory <b>"}
    assert not set(failed["number"]) & {trial.number for trial in run.front}
    number = int(failed["number"].iloc[0])
    assert "Traceback" in (run.directory / "trials" / f"{number:04d}" / "stderr.log").read_text()
    with pytest.raises(RunError, match="failed"):
        run.trial(number)


def test_a_search_without_a_single_success_fails(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="all 2 trials failed: DivergedError"):
        launch(config_of(tmp_path, trials=2, lr=1e30, clip_grad=1e30, opt="sgd", steps=30), Silent())


@pytest.mark.parametrize("space", ["hybrid", "low-rank", "full"])
def test_other_spaces_samplers_and_objectives(tmp_path: Path, space: str) -> None:
    options = {
        "space": space,
        "sampler": "nsga2",
        "objectives": ["error", "flops", "params"],
        "target": ["flops=70%,params=70%"],
    }
    run = launch(config_of(tmp_path, trials=12, **options), Silent())
    small = run.trials[~run.trials["label"].isin(REFERENCES)]
    assert (small["macs_kept"] <= 0.7).all()
    assert (small["params_kept"] <= 0.7).all()
    assert len(run.front) >= 1
    assert set(run.summary.front[0].allocation) == {site.name for site in run.space.all_sites}
    assert run.trials["label"].isna().any(), "the sampler proposed"


def test_no_target_spans_the_whole_range(tmp_path: Path) -> None:
    run = launch(config_of(tmp_path, trials=8, target=[]), Silent())
    assert run.summary.best == ()
    assert run.trials["macs_kept"].min() < 0.3


def test_operators_that_miss_a_budget_are_left_out(tmp_path: Path) -> None:
    """Low rank alone keeps 24.9 % of the MACs at the least: not a reason to refuse a search that has other operators."""
    options = {"space": "full", "target": ["flops=24%"], "baselines": ["uniform", "random"], "objectives": ["flops", "error"]}
    run = launch(config_of(tmp_path, trials=12, **options), Silent())
    small = run.trials[~run.trials["label"].isin(REFERENCES)]
    assert (small["macs_kept"] <= 0.24).all()
    labels = set(small["label"].dropna())
    assert {"warm start", "random", "uniform contract+low-rank", "uniform low-rank+neurons"} <= labels
    assert "uniform low-rank+low-rank" not in labels
    assert run.summary.objectives == ("error", "macs")


TWO = {**FRAMES, "target": ["flops=65%", "flops=40%"], "trials": 20}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """A search for two targets, and what it shows."""
    text = StringIO()
    with Display(Console(file=text, width=250)) as display:
        run = launch(config_of(tmp_path_factory.mktemp("two"), **TWO), display)
    return run, text.getvalue()


def test_two_targets_have_their_baselines_and_proposals(two: tuple[Run, str]) -> None:
    run, _ = two
    table, bands = run.trials, ((0.325, 0.65), (0.2, 0.4))
    groups = [["warm start"] * 3, ["uniform"] * 3] * 2
    assert list(table["label"][:14]) == [*REFERENCES, *chain.from_iterable(groups)]
    assert table["label"][14:].isna().all()
    for start, (low, high) in zip((2, 5, 8, 11), (*bands[:1] * 2, *bands[1:] * 2), strict=True):
        kept = table["macs_kept"][start : start + 3]
        assert kept.max() <= high < kept.max() + 0.03
        assert low - 0.03 < kept.min() < low + 0.03
    proposed = table["macs_kept"][14:]
    for kept, (low, high) in zip(proposed, (bands * 3), strict=True):  # in turn, the first target first
        assert low - 0.03 < kept <= high
    assert "additive:screened" in (run.directory / "study.journal").read_text()


def test_two_targets_have_their_best(two: tuple[Run, str]) -> None:
    run, text = two
    best = [run.best(target) for target in run.config.study.target]
    assert run.summary.best == tuple(trial.number for trial in best)
    assert [budget.target.text for budget in run.summary.targets] == ["flops=65%", "flops=40%"]
    for trial, limit in zip(best, (0.65, 0.4), strict=True):
        assert trial.objective("error") == run.trials[run.trials["macs_kept"] <= limit]["expected"].min()
    assert "target flops=65%; flops=40%; 20 trials in " in text
    last = next(line for line in text.splitlines() if line.startswith("trial 19: "))
    for name, trial in zip(("flops=65%", "flops=40%"), best, strict=True):
        figures = f"{expected_text(trial.expected)} expected at {trial.kept['macs']:.1%} of MACs"
        assert f"best under {name}: {figures} (trial {trial.number}" in last
    report = (run.directory / "report.html").read_text()
    assert "best under flops=65%" in report
    assert "best under flops=40%" in report


def test_an_export_takes_the_first_target_unless_told(two: tuple[Run, str], monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = two
    written: list[int] = []
    monkeypatch.setattr(
        sys.modules["search.deploy.model_folder"]._Export, "write", lambda work, folder: written.append(work.number)
    )
    assert [export(run).name, export(run, target="flops=40%").name] == ["flops65", "flops40"]
    assert written == [run.best("flops=65%").number, run.best("flops=40%").number]


def test_a_screened_search_goes_on_as_if_it_had_not_stopped(two: tuple[Run, str], tmp_path: Path) -> None:
    for stop in (15, 17):
        with pytest.raises(KeyboardInterrupt):
            launch(config_of(tmp_path, **TWO), Silent(stop_at=stop))
    again = launch(config_of(tmp_path, **TWO), Silent())
    pd.testing.assert_frame_equal(again.trials.drop(columns=TIMES), two[0].trials.drop(columns=TIMES))


@pytest.fixture(scope="module")
def folder(run: Run, watched: Silent) -> Path:
    return export(run, target="flops=60%", progress=watched.stage)


def test_every_stage_says_that_it_begins_and_that_it_is_done(watched: Silent, folder: Path) -> None:
    launched = {"loading", "dense model", "calibration", "factors", "forecast"}
    exported = {
        "writing the files", "loading the exported files", "testing the reloaded files: dense", "counting MACs and memory",
        "timing the reloaded models", "short fine-tune of the dense model", "testing the model as built", "testing the model",
    }  # fmt: skip
    assert launched | exported <= set(watched.stages)
    for what, told in watched.stages.items():
        assert told[0][0] == 0 < told[0][1], what
        assert told[-1][0] == told[-1][1], what
    assert watched.said == [
        "train: 1,140 images in digits",
        "search: 297 images in digits",
        "test: 360 images in digits",
        watched.said[3],
        "9 trials: 2 dense references, 3 warm starts, 3 baselines, 1 proposal of the sampler",
    ]
    assert watched.said[3].startswith("weights: ")
    assert any("1 of 9 is left to search with: --trials 28 leaves 20" in text for text in watched.notices)


def test_export_reloads_as_it_was_measured(run: Run, folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    best = run.best("flops=60%")
    assert (
        report["macs"]["fvcore_after_reload"]
        == report["macs"]["torch_after_reload"]
        == report["macs"]["compressed"]
        == best.costs["macs"]
    )
    assert report["params"]["after_reload"] == best.costs["params"]
    assert report["test_top1"]["after_reload"] == report["test_top1"]["finetuned"]
    model = load_compressed(folder)
    assert sum(p.numel() for p in model.parameters()) == best.costs["params"]
    config = run.config
    data = Data(config.data, preprocessing(create_model(config.model), config.model))
    assert evaluate(model, data.evaluation("search")).error == pytest.approx(best.error)
    assert 1 - evaluate(model, data.evaluation("test")).error == report["test_top1"]["after_reload"]
    assert "keeps" in (folder / "README.md").read_text()


def test_loading_imports_no_search(folder: Path) -> None:
    code = (
        "import sys, torch; from spaces import load_compressed\n"
        f"out = load_compressed({str(folder)!r})(torch.zeros(2, 1, 8, 8))\n"
        "print(tuple(out.shape), sorted({'optuna', 'ray', 'search', 'objectives'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "(2, 10) []"


def test_a_failed_export_leaves_no_half_folder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    target = run.directory / "export" / "trial0"

    def fail(*arguments: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("objectives.deploy.folder.save_compressed", fail)
    with pytest.raises(OSError, match="No space"):
        export(run, trial=0)
    assert not target.exists()
    assert not list(target.parent.glob(".*partial"))


def test_broken_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        load_compressed(broken)
    config = json.loads((folder / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config))
    (broken / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not the file that was exported"):
        load_compressed(broken)
    (broken / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    width, branch, sizes = "blocks.0.attn.qk", "blocks.0.mlp.branch", config["allocation"]
    for other, words in (
        ({width: 2 if sizes[width] != 2 else 4}, "does not fit"),
        ({branch: 0, "blocks.0.mlp.hidden": 128}, "does not fit"),
        ({branch: 2}, "does not describe the model"),
    ):
        (broken / "config.json").write_text(json.dumps({**config, "allocation": {**sizes, **other}}))
        with pytest.raises(CheckpointError, match=words):
            load_compressed(broken)
    (broken / "config.json").write_text(json.dumps({"format": FOLDER_FORMAT}))
    with pytest.raises(CheckpointError, match="lacks architecture"):
        load_compressed(broken)
