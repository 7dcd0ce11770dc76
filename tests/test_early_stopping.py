"""Rungs: a candidate that is clearly worse than a cheaper one is stopped, and nothing else changes."""

import io
import itertools
import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from local_digits import DATA, MODEL
from local_launches import OPTIONS, TIMES, Silent
from local_searches import proposed, score_of
from rich.console import Console
from test_evaluator import half
from test_report import Page
from test_study import open_study
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from objectives import measures as measures_module
from objectives.cost.spec import Cost
from objectives.data.config import DataConfig
from objectives.data.loaders import Data
from objectives.dense_model import load_dense
from objectives.error import evaluate
from objectives.evaluator import Evaluator
from objectives.objective import Objective
from objectives.score import Score
from objectives.training.config import FinetuneConfig
from search import SearchConfig, export, launch
from search.driver.demo import train_dense
from search.run.run import Run
from search.run.trial_table import EXPECTED
from search.runners import job
from search.study.early_stopping import dominating, margin, reason_to_stop
from search.study.study import Study
from search.terminal.display import Display
from search.terminal.parser import build_parser, given_options
from search.trial import Outcome, Proposal, Trial
from spaces.allocation import Allocation
from spaces.errors import ConfigError, RunError
from spaces.models.create import create_model, preprocessing
from spaces.tensors import save_tensors

# The decision, by hand


def score(rung: float, error: float | None, macs: int = 100, params: int = 10) -> Score:
    """A fine-tune of 40 steps that was measured at step 10."""
    return Score(
        error=error,
        error_before=0.9,
        kl=0.0,
        kl_before=0.0,
        costs={"macs": macs, "params": params},
        steps=40,
        seconds=1.0,
        rungs={10: rung},
    )


def trial(number: int, *figures: Any, label: str | None = None) -> Trial:
    allocation = Allocation({"b.hidden": number + 1})
    proposal = Proposal(number=number, allocation=allocation, space="contract", seed=0, label=label)
    return Trial(proposal=proposal, score=score(*figures) if figures else None, reason=None, ended="2026-11-24T01:00:00+00:00")


# From the rung to the end: -0.10, -0.12, -0.08, -0.11, -0.09; mean -0.10, variance 0.001 / 4.
TRIALS = [
    trial(0, 0.20, 0.10, 400, 40),
    trial(1, 0.30, 0.18, 300, 10),
    trial(2, 0.40, 0.32, 200, 20),
    trial(3, 0.50, 0.39, 100, 30),
    trial(4, 0.45, 0.36, 150, 15),
]
MARGIN = 2 * (2 * 0.001 / 4) ** 0.5  # 0.0447


def test_the_margin_by_hand() -> None:
    assert margin((trial.score for trial in TRIALS if trial.score), 10) == pytest.approx(MARGIN)


@pytest.mark.parametrize(
    ("macs", "error", "number"),
    [
        (300, 0.30 + MARGIN + 0.001, 1),  # as cheap as trial 1; trial 0 is better and dearer
        (300, 0.30 + MARGIN - 0.001, None),
        (299, 0.44, None),
        (299, 0.45, 2),
        (99, 0.99, None),  # nothing is cheaper
        (1000, 0.99, 0),  # the best of all that dominate it
    ],
)
def test_dominated_by_the_best_cheaper_one_with_a_margin(macs: int, error: float, number: int | None) -> None:
    found = dominating(TRIALS, {"macs": macs}, 10, error)
    assert (found and found[0]) == number


def test_every_cost_that_is_an_objective_counts() -> None:
    assert dominating(TRIALS, {"macs": 300}, 10, 0.35) is not None
    assert dominating(TRIALS, {"macs": 300, "params": 10}, 10, 0.35) is not None
    assert dominating(TRIALS, {"macs": 300, "params": 9}, 10, 0.35) is None


def test_too_few_trials_tell_nothing() -> None:
    others = [trial(5), trial(6, 0.1, None, 1, 1)]  # failed, and stopped itself
    assert margin([], 10) is None
    assert dominating(TRIALS[:4] + others, {"macs": 1000}, 10, 0.99) is None
    assert dominating(TRIALS, {"macs": 1000}, 20, 0.99) is None, "none was measured there"


def test_a_trial_that_was_stopped_or_failed_stops_nothing() -> None:
    others = [trial(5), trial(6, 0.01, None, 1, 1)]
    assert dominating(TRIALS + others, {"macs": 99}, 10, 0.99) is None


def test_baselines_are_never_stopped() -> None:
    hopeless: tuple[Mapping[Cost, float], int, int, float] = ({"macs": 1000}, 10, 40, 0.99)
    assert reason_to_stop(trial(9).proposal, TRIALS, *hopeless) == (
        "stopped at step 10 of 40: error 99.00%, dominated by trial 0 (20.00% there)"
    )
    for label in ("dense", "dense, tail", "warm start", "widths alone", "uniform", "random", "vtp"):
        assert reason_to_stop(trial(9, label=label).proposal, TRIALS, *hopeless) is None


# Laws


def random_trials(rng: random.Random, spread: float = 0.02) -> list[Trial]:
    rungs = [rng.uniform(0.1, 0.9) for _ in range(rng.randint(5, 12))]
    noise = [rng.gauss(0, 1) for _ in rungs]
    return [trial(number, rung, rung - 0.1 + spread * noise[number], rng.randint(1, 1000)) for number, rung in enumerate(rungs)]


@pytest.mark.parametrize("seed", range(20))
def test_never_without_a_cheaper_one_whatever_the_error(seed: int) -> None:
    trials = random_trials(random.Random(seed))
    cheapest = min(entry.score.costs["macs"] for entry in trials if entry.score)
    assert dominating(trials, {"macs": cheapest - 1}, 10, 1.0) is None


@pytest.mark.parametrize("seed", range(20))
def test_a_larger_spread_stops_less(seed: int) -> None:
    stopped = []
    for spread in (0.0, 0.01, 0.05, 0.2, 1.0):
        rng = random.Random(seed)
        trials = random_trials(rng, spread)
        candidates = [(rng.randint(1, 1000), rng.uniform(0.1, 0.9)) for _ in range(50)]
        stopped.append({pair for pair in candidates if dominating(trials, {"macs": pair[0]}, 10, pair[1])})
    for narrow, wide in itertools.pairwise(stopped):
        assert wide <= narrow
    assert stopped[0] > stopped[-1]


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_the_trials_does_not_matter(seed: int) -> None:
    rng = random.Random(seed)
    trials = random_trials(rng)
    candidates = [(rng.randint(1, 1000), rng.uniform(0.1, 0.9)) for _ in range(20)]
    before = [dominating(trials, {"macs": macs}, 10, error) for macs, error in candidates]
    rng.shuffle(trials)
    assert [dominating(trials, {"macs": macs}, 10, error) for macs, error in candidates] == before


# Measuring


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    """With dropout, so that training draws from the generators that everybody can see."""
    folder = tmp_path_factory.mktemp("runs")
    kwargs = {**MODEL.model_kwargs, "proj_drop_rate": 0.1, "drop_path_rate": 0.1}
    model = replace(MODEL, model_kwargs=kwargs, checkpoint=str(folder / "dense.safetensors"))
    torch.manual_seed(0)
    save_tensors(folder / "dense.safetensors", create_model(replace(model, checkpoint=None)).state_dict())
    finetune = FinetuneConfig(steps=8, lr=5e-4)
    factors = folder / "one" / "factors"
    objective = Objective(model=model, data=DATA, finetune=finetune, rungs=(0.25, 0.5), factors=factors, device="cpu")
    return Evaluator(load_dense(objective))


def test_rungs_are_steps_before_the_last(evaluator: Evaluator) -> None:
    assert evaluator.dense.objective.rung_steps == {2, 4}
    for steps, expected in ((0, set()), (1, set()), (2, {1}), (3, {1, 2}), (100, {25, 50})):
        short = replace(evaluator.dense.objective, finetune=FinetuneConfig(steps=steps, lr=5e-4))
        assert short.rung_steps == expected


def test_a_fine_tune_that_goes_on_is_the_same_to_the_bit(
    evaluator: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, float]] = []

    def go_on(step: int, error: float) -> bool:
        asked.append((step, error))
        return False

    plain = evaluator.evaluate(half(evaluator), 0, weights=tmp_path / "plain")
    measured = evaluator.evaluate(half(evaluator), 0, weights=tmp_path / "rungs", on_rung=go_on)
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "rungs").read_bytes()
    assert replace(measured, rungs={}, seconds=0) == replace(plain, seconds=0)
    assert [step for step, _ in asked] == [2, 4]
    assert measured.rungs == dict(asked)
    assert plain.rungs == {}
    monkeypatch.setattr("objectives.data.loaders.MEMORY_BYTES", 0)  # as with a split that does not fit in memory
    uncached = Evaluator(load_dense(evaluator.dense.objective))
    uncached.evaluate(half(evaluator), 0, weights=tmp_path / "uncached", on_rung=go_on)
    assert (tmp_path / "uncached").read_bytes() == (tmp_path / "plain").read_bytes()


def test_stopped_at_a_rung(evaluator: Evaluator, tmp_path: Path) -> None:
    steps: list[int] = []
    found = evaluator.evaluate(
        half(evaluator), 0, lambda step: steps.append(step.step), tmp_path / "weights", on_rung=lambda step, error: step == 4
    )
    whole = evaluator.evaluate(half(evaluator), 0, on_rung=lambda step, error: False)
    assert steps == [1, 2, 3, 4]
    assert (found.error, found.kl, found.steps) == (None, None, 4)
    assert found.rungs == whole.rungs
    assert (found.error_before, found.costs) == (whole.error_before, whole.costs)
    assert found.seconds > 0
    assert not (tmp_path / "weights").exists()


def test_the_error_at_a_rung_is_that_of_the_model_there(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer images than the limit it is the error on the search split; with more, on a fixed part of it."""
    errors: list[float] = []
    genuine = evaluate

    def recorded(*arguments: Any, **options: Any) -> Any:
        found = genuine(*arguments, **options)
        errors.append(found.error)
        counts.append(found.count)
        return found

    counts: list[int] = []
    monkeypatch.setattr(measures_module, "evaluate", recorded)
    whole = evaluator.evaluate(half(evaluator), 0, on_rung=lambda step, error: False)
    assert counts == [256, 297, 297, 297, 297]
    assert [errors[0], *errors[2:]] == [whole.error_before, whole.rungs[2], whole.rungs[4], whole.error]
    counts.clear()
    monkeypatch.setattr(measures_module, "RUNG_IMAGES", 100)
    evaluator.evaluate(half(evaluator), 0, on_rung=lambda step, error: False)
    assert counts == [256, 100, 100, 100, 297]


def test_a_part_of_a_split_is_always_the_same_and_spread_over_it() -> None:
    config = DataConfig(dataset="digits", eval_batch_size=64)
    parts = []
    for _ in range(2):
        data = Data(config, preprocessing(create_model(MODEL), MODEL))
        whole = torch.cat([images for images, _ in data.evaluation("search")])
        parts.append(torch.cat([images for images, _ in data.evaluation("search", 150)]))
        assert torch.equal(torch.cat([images for images, _ in data.evaluation("search", 297)]), whole)
    assert len(parts[0]) == 150
    assert torch.equal(*parts)
    positions = [next(i for i, image in enumerate(whole) if torch.equal(image, one)) for one in parts[0]]
    assert positions == sorted(positions)
    assert positions[-1] > 250, "the classes of a folder lie one after another"


def test_a_pass_draws_no_random_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("objectives.data.loaders.MEMORY_BYTES", 0)
    data = Data(DATA, preprocessing(create_model(MODEL), MODEL))
    before = torch.get_rng_state()
    for _ in data.evaluation("search", 100):
        pass
    assert torch.equal(torch.get_rng_state(), before)
    next(iter(DataLoader(TensorDataset(torch.zeros(3, 1)))))
    assert not torch.equal(torch.get_rng_state(), before), "which is not a matter of course"


# Journal and sampler


def stop(study: Study) -> Trial:
    proposal = proposed(study)
    unfinished = replace(score_of(proposal.allocation), error=None, kl=None, steps=3, rungs={1: 0.75, 3: 0.5})
    return study.tell(Outcome(number=proposal.number, score=unfinished, reason="dominated by trial 0"))


def test_a_stopped_trial_is_kept_and_told_to_the_sampler(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    first = proposed(study)
    study.tell(Outcome(number=first.number, score=replace(score_of(first.allocation), rungs={1: 0.5, 3: 0.25})))
    stopped = stop(study)
    assert (stopped.state, stopped.reason) == ("PRUNED", "dominated by trial 0")
    assert [frozen.state.name for frozen in study.memory.get_trials()] == ["COMPLETE", "PRUNED"]
    study.close()
    again = open_study(tmp_path)
    assert again.trials == study.trials
    assert again.trials[1].score is not None
    assert again.trials[1].score.rungs == {1: 0.75, 3: 0.5}
    assert [frozen.state.name for frozen in again.memory.get_trials()] == ["COMPLETE", "PRUNED"]
    assert again.memory.get_trials()[1].values is None


@pytest.mark.parametrize("sampler", ["additive", "tpe", "random"])
def test_resumed_after_stopped_trials_proposes_as_uninterrupted(tmp_path: Path, sampler: str) -> None:
    def go_on(study: Study, until: int) -> list[Allocation | None]:
        while len(study.trials) < until:
            if len(study.trials) % 3 == 1:
                stop(study)
            else:
                proposal = proposed(study)
                study.tell(Outcome(number=proposal.number, score=score_of(proposal.allocation)))
        return [entry.proposal.allocation for entry in study.trials]

    whole = go_on(open_study(tmp_path / "whole", sampler=sampler), 20)
    part = open_study(tmp_path / "part", sampler=sampler)
    go_on(part, 14)
    part.close()
    assert go_on(open_study(tmp_path / "part", sampler=sampler), 20) == whole


# A whole search: every second proposal of the sampler is hopeless


TRIALS_PER_RUN, BASELINES = 14, 8
HOPELESS = [9, 11, 13]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained for a few seconds, so that candidates differ."""
    path = tmp_path_factory.mktemp("dense") / "dense.safetensors"
    config = SearchConfig.from_flat(OPTIONS)
    train_dense(config.model, config.data, FinetuneConfig(steps=300, lr=2e-3), path)
    return path


@pytest.fixture(scope="module")
def _spoilt() -> Iterator[None]:
    """The classes of the hopeless candidates are turned round as they are built: no eight steps mend that."""
    genuine = job.evaluate

    def turned_round(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            model.get_parameter("head.weight").neg_()
        return model

    def spoil(evaluator: Evaluator, proposal: Proposal, *arguments: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            if proposal.number in HOPELESS:
                build = evaluator.build
                patch.setattr(evaluator, "build", lambda allocation: turned_round(build(allocation)))
            return genuine(evaluator, proposal, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "evaluate", spoil)
        yield


def searched(folder: Path, dense: Path, **options: Any) -> SearchConfig:
    # By a sampler whose hopeless proposals have a cheaper trial each to be compared with, and over widths alone: proposals that
    # drop a branch or merge many tokens are rightly stopped too.
    given = {"checkpoint": str(dense), "steps": 8, "trials": TRIALS_PER_RUN, "rungs": [0.25, 0.5], "sampler": "tpe"}
    return SearchConfig.from_flat(
        {**OPTIONS, **given, "tokens": False, "drop": False, "output": str(folder / "run"), **options}
    )


@pytest.fixture(scope="module")
def run(dense: Path, tmp_path_factory: pytest.TempPathFactory, _spoilt: None) -> Run:
    return launch(searched(tmp_path_factory.mktemp("spoilt"), dense), Silent())


@pytest.mark.slow
def test_hopeless_candidates_are_stopped_and_recorded(run: Run) -> None:
    table = run.trials.set_index("number", drop=False)
    assert (table["state"][:BASELINES] == "COMPLETE").all()
    assert list(table[table["state"] == "PRUNED"]["number"]) == HOPELESS
    assert run.summary.states == {"COMPLETE": TRIALS_PER_RUN - len(HOPELESS), "PRUNED": len(HOPELESS)}
    for number in HOPELESS:
        row = table.loc[number]
        assert (row["steps"], row["rung"]) == (2, 2)
        assert pd.isna(row["error"]) and pd.isna(row["kl"])
        assert row["rung_error"] > 0.9
        assert row["macs_kept"] == row["macs"] / run.summary.dense.costs["macs"] <= 0.6
        better = int(re.fullmatch(r"stopped at step 2 of 8: error .*%, dominated by trial (\d+) .*", row["reason"])[1])
        assert table.loc[better, "state"] == "COMPLETE"
        assert table.loc[better, "macs"] <= row["macs"]
        folder = run.directory / "trials" / f"{number:04d}"
        assert not (folder / "stderr.log").exists()
        assert not (folder / "weights.safetensors").exists()
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line.get("step") for line in lines] == [1, 2, None]
    finished = table[table["state"] == "COMPLETE"]
    assert (finished["rung"] == 4).all()
    assert (finished["steps"] == 8).all()
    assert not set(HOPELESS) & {trial.number for trial in run.front}


@pytest.mark.slow
def test_the_page_lists_them_apart_from_failures(run: Run) -> None:
    page = Page((run.directory / "report.html").read_text(encoding="utf-8"))
    assert "11 finished · 3 stopped early" in page.words
    assert "3 trials stopped early" in page.words
    assert "without a result" not in page.words
    assert not {str(number) for number in HOPELESS} & set(page.data["points"])


@pytest.mark.slow
@pytest.mark.usefixtures("_spoilt")
def test_the_terminal_says_why(dense: Path, tmp_path: Path) -> None:
    text = io.StringIO()
    with Display(Console(file=text, width=130)) as display:
        launch(searched(tmp_path, dense, trials=10), display)
    (line,) = [line for line in text.getvalue().splitlines() if line.startswith("trial 9:")]
    assert "of MACs, stopped at step 2 of 8: error 100.00%, dominated by trial " in line


@pytest.mark.slow
def test_a_stopped_trial_has_no_model_to_export(run: Run) -> None:
    with pytest.raises(RunError, match=r"trial 9 .* was not finished \(stopped at step 2 of 8: .*\): choose one of the front"):
        export(run, trial=9)
    assert not (run.directory / "export").exists()


@pytest.mark.slow
def test_interrupted_and_continued_stops_the_same_ones(run: Run, dense: Path, tmp_path: Path) -> None:
    for stop_at in (9, 10, 13):
        with pytest.raises(KeyboardInterrupt):
            launch(searched(tmp_path / "again", dense), Silent(stop_at=stop_at))
    again = launch(searched(tmp_path / "again", dense), Silent())
    pd.testing.assert_frame_equal(again.trials.drop(columns=TIMES), run.trials.drop(columns=TIMES))


@pytest.mark.slow
def test_without_rungs_nothing_is_stopped_and_the_others_are_the_same(run: Run, dense: Path, tmp_path: Path) -> None:
    """Up to where the sampler learns from what was stopped; but for trials whose best weights were those of a rung."""
    whole = launch(searched(tmp_path / "whole", dense, rungs=["none"]), Silent())
    assert (whole.trials["state"] == "COMPLETE").all()
    assert whole.trials["rung"].isna().all()
    same = [name for name in whole.trials.columns if name not in (*TIMES, *EXPECTED, "rung", "rung_error")]
    before = HOPELESS[0]
    alike = [row for row, step in enumerate(run.trials["kept_step"][:before]) if step in (0, 8)]
    assert alike
    pd.testing.assert_frame_equal(whole.trials[same].loc[alike], run.trials[same].loc[alike], check_dtype=False)
    assert whole.trials["macs"][before] == run.trials["macs"][before]


@pytest.mark.parametrize(
    ("arguments", "rungs"), [(["none"], ()), (["0.5"], (0.5,)), (["0.1", "0.2", "0.3"], (0.1, 0.2, 0.3)), ([], ())]
)
def test_rungs_on_the_command_line(arguments: list[str], rungs: tuple[float, ...]) -> None:
    line = ["launch", "--model", "vit", *(["--rungs", *arguments] if arguments else [])]
    config = SearchConfig.from_flat(given_options(build_parser().parse_args(line)))
    assert config.study.rungs == config.objective(Path()).rungs == rungs


@pytest.mark.parametrize("rungs", [[0.0], [1.0], [0.5, 0.5], [0.5, 0.25], [-0.5], [1.5]])
def test_rungs_ascend_between_0_and_1(rungs: list[float]) -> None:
    with pytest.raises(ConfigError, match="rungs must ascend between 0 and 1, got"):
        SearchConfig.from_flat({"rungs": rungs})
