"""Whole searches on the digits for a latency, whose times are a known function of the sizes."""

import json
from io import StringIO
from pathlib import Path

import local_latency
import pytest
from local_latency import FakeTimer, cut, seconds_of
from local_launches import FRAMES, Silent, config_of
from ray import cloudpickle
from rich.console import Console
from torch import nn

from objectives.latency.table import LATENCY, LatencyTable
from search import launch
from search.run.finished_trial import FinishedTrial
from search.run.run import Run
from search.run.summary_file import summary_to_json
from search.runners.base import Listener
from search.runners.ray_actors import RayRunner
from search.terminal.display import Display
from search.terminal.tables import front_table
from search.trial import DENSE, DENSE_TAIL, Outcome, Proposal
from spaces.errors import RunError, TargetError
from spaces.models.create import create_model
from spaces.vit import describe

pytestmark = pytest.mark.slow

TARGET = {**FRAMES, "target": ["latency=70%"], "objectives": "error,latency", "trials": 10}


def slowed(model: nn.Module) -> float:
    return 2 * seconds_of(model)


def test_a_search_for_a_latency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every proposal is within it, where most would not be by their MACs alone; what is left of a run goes on as it was."""
    timer, text = FakeTimer(monkeypatch), StringIO()
    with pytest.raises(KeyboardInterrupt):
        launch(config_of(tmp_path, **TARGET), Silent(stop_at=6))
    table, measured = (tmp_path / "run" / LATENCY).read_bytes(), len(timer.timed)
    timer.law = slowed
    with Display(Console(file=text, width=250)) as display:
        run = launch(config_of(tmp_path, **TARGET), display)
    assert (tmp_path / "run" / LATENCY).read_bytes() == table, "costs must not change within a run"
    assert len(timer.timed) == measured
    dense = seconds_of(create_model(run.config.model))
    assert run.summary.dense.costs["latency"] == pytest.approx(dense)
    assert run.summary.objectives == ("error", "latency")
    (budget,) = run.summary.targets
    assert budget.limits == {"latency": pytest.approx(0.7 * dense)}
    small = run.trials[~run.trials["label"].isin([DENSE, DENSE_TAIL])]
    assert len(small) == 8
    assert small["latency"].max() <= budget.limits["latency"] < 1.05 * small["latency"].max()
    for trial in run.ended[1:]:
        truth = seconds_of(_model(run, trial))
        assert trial.costs["latency"] == pytest.approx(truth)
        assert trial.kept["latency"] == pytest.approx(truth / dense)
    latencies = [trial.costs["latency"] for trial in run.front]
    assert latencies == sorted(latencies)
    assert run.best("latency=70%").number == run.summary.best[0]
    said = text.getvalue()
    assert f"latency of the dense model {1000 * dense:.3g} ms for batch 1, fp32, eager, on " in said
    assert "of latency, error" in said
    shown = StringIO()
    Console(file=shown, width=250).print(front_table(run.summary))
    assert f"{1000 * latencies[0]:.3g} ms" in shown.getvalue()


def _model(run: Run, trial: FinishedTrial) -> nn.Module:
    dense = create_model(run.config.model)
    return cut(dense, describe(dense, run.config.study.space, run.config.study.multiple), trial.allocation)


def test_a_run_keeps_its_latencies_or_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeTimer(monkeypatch)
    config = config_of(tmp_path, **{**TARGET, "trials": 2, "tokens": False, "drop": False})
    path = launch(config, Silent()).directory / LATENCY
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "device": "elsewhere cpu (x86_64)"}))
    reporter = Silent()
    launch(config, reporter)
    assert [text for text in reporter.notices if "latenc" in text] == [
        "this run keeps the latencies that it began with, of elsewhere cpu (x86_64)"
    ]
    path.write_text("{")
    with pytest.raises(RunError, match=r"latency\.json cannot be read"):
        launch(config, Silent())
    path.unlink()
    with pytest.raises(RunError, match=r"latency\.json .*is missing"):
        launch(config, Silent())


def test_joint_targets_and_a_recipe_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe keeps the bound on MACs; its latency is timed beside the dense model's, since no table knows its space."""
    FakeTimer(monkeypatch)
    options = {"target": ["flops=60%,latency=80%"], "trials": 10, "baselines": ["uniform", "random", "svd-energy"]}
    run = launch(config_of(tmp_path, **options), Silent())
    recipe = run.trials["label"] == "svd-energy"
    small = run.trials[~run.trials["label"].isin([DENSE, DENSE_TAIL]) & ~recipe]
    assert small["macs_kept"].max() <= 0.6
    assert small["latency_kept"].max() <= 0.8
    (made,) = (trial for trial in run.ended if trial.label == "svd-energy")
    dense = create_model(run.config.model)
    truth = seconds_of(cut(dense, describe(dense, "low-rank", run.config.study.multiple), made.allocation))
    assert made.costs["latency"] == pytest.approx(truth)
    assert made.kept["macs"] <= 0.6


def test_a_recipe_alone_has_a_latency_as_an_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No table says what its space can reach, so no bound is put on it."""
    FakeTimer(monkeypatch)
    run = launch(config_of(tmp_path, recipe="svd-energy", objectives=["error", "latency"]), Silent())
    assert run.summary.objectives == ("error", "latency")
    assert "latency" not in run.summary.reach
    assert run.trials["latency_kept"].between(0, 1).all()
    with pytest.raises(TargetError, match=r"not on latency: write --target flops=60%$"):
        config_of(tmp_path, recipe="svd-energy", target=["flops=60%,latency=80%"])


def test_latency_as_an_objective_without_a_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeTimer(monkeypatch)
    run = launch(config_of(tmp_path, target=[], objectives=["error", "latency"], trials=8), Silent())
    least, dense = run.summary.reach["latency"]
    assert run.trials["latency"].min() < least + 0.1 * (dense - least)
    assert 0 < run.summary.hypervolume < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": ["latency=1%"]}, r"'latency=1%' is .* µs, but this space reaches from .* ms \(\d.*%\) to .* ms \(100%"),
        ({"target": ["latency=fast"]}, "not understood"),
        ({"target": ["latency=90%"], "baselines": ["vtp"]}, "recipe 'vtp' keeps bounds on MACs or parameters, not on latency"),
    ],
)
def test_what_cannot_be_searched_leaves_no_run(
    options: dict[str, list[str]], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeTimer(monkeypatch)
    with pytest.raises(TargetError, match=message):
        launch(config_of(tmp_path, **options), Silent())
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_without_latency_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timer = FakeTimer(monkeypatch)
    run = launch(config_of(tmp_path, trials=2), Silent())
    assert not timer.timed
    assert "latency" not in " ".join(run.trials.columns)
    assert "latency" not in json.dumps({**summary_to_json(run.summary), "spaces": {}})
    with pytest.raises(TargetError, match="'latency=50%': this run measured no latency"):
        run.best("latency=50%")


def test_a_worker_of_ray_measures_the_table_and_scores_by_it(tmp_path: Path) -> None:
    config = config_of(tmp_path, objectives="error,latency", parallel=2)
    objective = config.objective(tmp_path / "run")
    (tmp_path / "run").mkdir()
    cloudpickle.register_pickle_by_value(local_latency)  # workers do not import tests
    runner = RayRunner(objective, config.machines, Listener(), local_latency.FakeTimedWorker)
    try:
        runner.prepare(["latency", "factors"])
        dense = create_model(config.model)
        space = describe(dense, config.study.space, config.study.multiple)
        allocation = space.identity().replace({"blocks.0.mlp.hidden": 40, "blocks.1.attn.qk": 6})
        runner.submit(Proposal(number=0, allocation=allocation, space=space.name, seed=0), tmp_path / "run" / "trials" / "0000")
        outcome = None
        while outcome is None:
            outcome = runner.wait()
    finally:
        runner.close()
        cloudpickle.unregister_pickle_by_value(local_latency)
    assert isinstance(outcome, Outcome)
    assert outcome.score is not None, outcome.reason
    table = LatencyTable.load(tmp_path / "run" / LATENCY)
    assert outcome.score.costs["latency"] == pytest.approx(table.latency(space, allocation), rel=1e-12)
    assert outcome.score.costs["latency"] == pytest.approx(seconds_of(cut(dense, space, allocation)))
