"""Recipes on the command line: alone, as baselines beside a search, refused, interrupted, failed, and exported."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from local_launches import TIMES, Silent, config_of
from local_runs import DIGITS, MODEL, Fails
from test_report import Page
from torch import nn

import run_search
from objectives.data.loaders import Data
from objectives.error import evaluate
from search import export, launch, open_run
from search.run.run import Run
from spaces import load_compressed
from spaces.models.create import create_model, preprocessing
from spaces.vit import describe

HALF = ["flops=50%"]
LABELS = ["dense", "dense, tail", *["warm start"] * 3, "random", "vtp", "losparse", "magnitude"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four baselines in two spellings, and two proposals of the sampler."""
    baselines = ["vtp,losparse,magnitude", "random"]
    return launch(config_of(tmp_path_factory.mktemp("recipes"), baselines=baselines, target=HALF, trials=11), Silent())


def page_of(run: Run) -> dict[str, Any]:
    return Page((run.directory / "report.html").read_text(encoding="utf-8")).data


# Alone


def test_a_recipe_alone_is_the_dense_model_and_the_recipe(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["--recipe", "magnitude", "--target", "flops=15%", "--trials", "30", "--output", str(tmp_path)]
    assert run_search.main(["launch", *MODEL, "--checkpoint", str(checkpoint), *DIGITS, *arguments]) == 0
    run = open_run(tmp_path)
    assert list(run.trials["label"]) == ["dense", "magnitude"]
    assert list(run.trials["state"]) == ["COMPLETE"] * 2
    assert 0.12 < run.trials["macs_kept"][1] <= 0.15
    assert run.best("flops=15%").label == "magnitude"
    assert run.profile is None


def test_a_recipe_alone_is_continued_and_not_repeated(tmp_path: Path) -> None:
    config = config_of(tmp_path, recipe="heads-energy", target=HALF)
    first = launch(config, Silent())
    watched = Silent()
    assert launch(config, watched).trials.equals(first.trials)
    assert not watched.trials


def test_a_recipe_needs_a_budget(launch: Fails) -> None:
    assert launch("--recipe", "magnitude") == "error: the recipe 'magnitude' needs a budget: --target flops=50%"


@pytest.mark.parametrize("flag", ["--recipe", "--baselines"])
def test_unknown_recipe_leaves_no_run(launch: Fails, flag: str) -> None:
    line = launch(flag, "vpt", "--target", "flops=50%")
    assert "unknown recipe 'vpt': choose one of uniform, random, kumar-hybrid" in line
    assert "heads-graph" in line


@pytest.mark.parametrize("flag", ["--recipe", "--baselines"])
def test_a_budget_that_a_recipe_cannot_keep_leaves_no_run(launch: Fails, flag: str) -> None:
    """Low rank keeps its embedding and ranks of 8 in layers 16 wide; narrow heads and few neurons go further."""
    line = launch(flag, "svd-energy", "--target", "flops=10%")
    if flag == "--baselines":
        assert "recipe 'svd-energy' cannot keep this budget: the smallest model that it makes keeps" in line
    else:
        assert "this space reaches from" in line


# Beside a search


def test_baselines_are_rows_of_their_own_space(run: Run) -> None:
    assert list(run.trials["label"][:9]) == LABELS
    assert run.trials["label"][9:].isna().all()
    assert (run.trials["state"] == "COMPLETE").all()
    assert (run.trials["steps"] == 3).all()
    assert (run.trials["macs_kept"][2:] <= 0.5).all()
    assert list(run.trials["space"]) == [*["contract"] * 6, "gated", "low-rank-sparse", *["contract"] * 3]
    model = create_model(run.config.model)
    for trial in run.ended:
        describe(model, trial.space, 8).validate(trial.allocation)


def test_every_step_of_a_recipe_is_recorded(run: Run) -> None:
    for number in range(11):
        lines = (run.directory / "trials" / f"{number:04d}" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line).get("step") for line in lines] == [1, 2, 3, None]


def test_baselines_are_named_in_the_page(run: Run) -> None:
    page = page_of(run)
    assert {int(number): point["label"] for number, point in page["points"].items() if point["label"]} == dict(
        enumerate(LABELS)
    )
    for cost in ("macs", "params"):
        figure = page["figures"][cost]
        assert figure["traces"]["baselines"]["customdata"] == [1, 2, 3, 4, 5, 6, 7, 8]
        for screen in ("wide", "narrow"):
            shown = figure["labels"][screen]["text"]
            assert {name for text in shown for name in text.replace("dense, tail", "").split(", ")} <= {"", *LABELS[2:]}
        assert any(figure["labels"]["wide"]["text"])
    sizes = {
        number: dict(zip((site["name"] for site in page["sites"]), p["sizes"], strict=True))
        for number, p in page["points"].items()
    }
    for number in (6, 7):
        allocation = run.trial(number).allocation
        assert {name: sizes[str(number)][name] for name in allocation} == dict(allocation)
    assert (run.directory / "pareto.png").stat().st_size > 0


def test_interrupted_before_a_recipe_and_continued(run: Run, tmp_path: Path) -> None:
    """The recipe had begun: its proposal is on disk, with no allocation."""
    options = {"baselines": ["vtp,losparse,magnitude", "random"], "target": HALF, "trials": 11}
    with pytest.raises(KeyboardInterrupt):
        launch(config_of(tmp_path, **options), Silent(stop_at=6))
    pending = json.loads((tmp_path / "run" / "trials" / "0006" / "allocation.json").read_text())
    assert pending["allocation"] is None
    assert (pending["recipe"], pending["label"], pending["space"]) == ("vtp", "vtp", "gated")
    assert pending["limits"] == {"macs": run.summary.dense.costs["macs"] / 2}
    again = launch(config_of(tmp_path, **options), Silent())
    pd.testing.assert_frame_equal(again.trials.drop(columns=TIMES), run.trials.drop(columns=TIMES))


def test_a_recipe_that_fails_is_one_failed_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from objectives.recipes import workbench

    def fail(*arguments: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(workbench, "finetune", fail)
    run = launch(config_of(tmp_path, baselines=["gohsp,magnitude"], target=HALF, trials=8), Silent())
    assert list(run.trials["state"]) == [*["COMPLETE"] * 5, "FAIL", *["COMPLETE"] * 2]
    assert run.trials["reason"][5] == "RuntimeError: out of memory"
    assert run.trials.loc[5, [site.name for site in run.space.sites]].isna().all()
    assert list(page_of(run)["points"]) == ["0", "1", "2", "3", "4", "6", "7"]
    assert launch(config_of(tmp_path, baselines=["gohsp,magnitude"], target=HALF, trials=8), Silent()).trials.equals(run.trials)


def test_a_recipe_of_no_target_gets_half_of_the_macs(tmp_path: Path) -> None:
    run = launch(config_of(tmp_path, baselines=["magnitude"], target=[], trials=5), Silent())
    (row,) = run.trials[run.trials["label"] == "magnitude"].to_dict("records")
    assert 0.45 < row["macs_kept"] <= 0.5


# Exported


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vtp", pytest.param("losparse", marks=pytest.mark.long)])
def test_the_model_of_a_recipe_reloads_as_it_was_measured(run: Run, name: str) -> None:
    """Of those whose space no search has."""
    trial = run.trial(LABELS.index(name))
    folder = export(run, trial=trial.number)
    report = json.loads((folder / "report.json").read_text())
    assert report["macs"]["fvcore_after_reload"] == report["macs"]["torch_after_reload"] == trial.costs["macs"]
    assert report["params"]["after_reload"] == trial.costs["params"]
    assert report["test_top1"]["after_reload"] == report["test_top1"]["finetuned"]
    model: nn.Module = load_compressed(folder)
    data = Data(run.config.data, preprocessing(create_model(run.config.model), run.config.model))
    assert evaluate(model, data.evaluation("search")).error == pytest.approx(trial.error)
    assert 1 - evaluate(model, data.evaluation("test")).error == report["test_top1"]["after_reload"]
