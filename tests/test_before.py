"""What candidates are measured on as built: the images of the profile, or the search split where an option says so."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from local_digits import DATA, MODEL, evaluator_of, limits_of
from local_vits import cut
from torch import Tensor, nn

from objectives.dense_model import load_dense
from objectives.error import evaluate, predict
from objectives.evaluator import Evaluator
from objectives.measures import Measures
from objectives.objective import Objective
from objectives.recipes.registry import evaluate_recipe
from objectives.runtime.distributed import Group
from objectives.training.config import FinetuneConfig
from search.config import SearchConfig, StudyConfig
from search.run.continuation import check_same_run
from spaces.allocation import Allocation
from spaces.errors import DataError, RunError
from spaces.models.create import create_model

SEARCHED, PROFILED, STEPS = 297, 100, 4
GOOD, BAD = FinetuneConfig(steps=STEPS, lr=1e-3), FinetuneConfig(steps=STEPS, lr=1.0)


@pytest.fixture(scope="module")
def objective(tmp_path_factory: pytest.TempPathFactory) -> Objective:
    """Of 100 images of the profile: batches of 64 and 36."""
    torch.manual_seed(0)
    model = create_model(MODEL)
    with torch.no_grad():
        model.get_parameter("head.weight").normal_(std=0.5)  # so that candidates diverge by more than rounding
    data, folder = replace(DATA, profile_images=PROFILED), tmp_path_factory.mktemp("runs")
    evaluator = evaluator_of(model, folder, data=data, finetune=GOOD)
    _ = evaluator.dense.factors
    return evaluator.dense.objective


def opened(objective: Objective, **changes: Any) -> Evaluator:
    """An evaluator that has made the dense model's passes: what follows are a candidate's own."""
    evaluator = Evaluator(load_dense(replace(objective, **changes)))
    _ = evaluator.dense.answers, evaluator.dense.factors
    if evaluator.dense.objective.split_before == "train":
        _ = evaluator.dense.screening
    return evaluator


def smallest(evaluator: Evaluator) -> Allocation:
    return cut(evaluator.dense.space, lambda site: site.choices[0])


@contextmanager
def counting(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many images every pass of a candidate had, in evaluation mode."""
    seen, build = list[int](), evaluator.build

    def count(module: nn.Module, arguments: tuple[Tensor]) -> None:
        if not module.training:
            seen.append(len(arguments[0]))

    def built(allocation: Allocation) -> nn.Module:
        model = build(allocation)
        model.register_forward_pre_hook(count)
        return model

    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "build", built)
        yield seen


@pytest.mark.parametrize(
    ("changes", "images"),
    [
        ({}, [64, 36, 256, 41, 256, 41]),
        ({"finetune": BAD}, [64, 36, 256, 41, 256, 41]),
        ({"measure_before": True}, [256, 41, 256, 41]),
        ({"measure_before": True, "finetune": BAD}, [256, 41, 256, 41]),
        ({"finetune": FinetuneConfig(steps=0)}, [256, 41]),
        ({"finetune": FinetuneConfig(steps=0), "measure_before": True}, [256, 41]),
        ({"data": replace(DATA, profile_images=0)}, [256, 41, 256, 41]),
        ({"data": replace(DATA, profile_images=PROFILED, eval_batch_size=50)}, [50, 14, 36, *2 * [50, 50, 50, 50, 50, 47]]),
    ],
    ids=[
        "default",
        "in vain",
        "asked for",
        "asked for, in vain",
        "no steps",
        "no steps, asked for",
        "no profile",
        "small batches",
    ],
)
def test_images_that_pass_a_candidate(
    objective: Objective, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], images: list[int]
) -> None:
    """Those it is screened with, those of rungs and the search split; once more where the weights as built are kept."""
    evaluator = opened(objective, **changes)
    with counting(evaluator, monkeypatch) as seen:
        score = evaluator.evaluate(smallest(evaluator), seed=0)
    passes = -(-SEARCHED // evaluator.dense.objective.data.eval_batch_size)
    in_vain = score.kept_step == 0 and evaluator.dense.objective.split_before == "train"
    assert seen == [*images, *(images[len(images) - passes :] if in_vain else [])]
    assert score.kept_step == 0 or changes.get("finetune") != BAD
    if not evaluator.dense.objective.finetune.steps:
        assert (score.error, score.kl) == (score.error_before, score.kl_before)


def test_figures_as_built_are_those_of_their_images(objective: Objective) -> None:
    """By `evaluate` on the first 100 calibration images, or on the search split; the fine-tune is the same either way."""
    evaluator = opened(objective)
    data, model = evaluator.dense.data, evaluator.build(smallest(evaluator))
    scores = [entry.evaluate(smallest(entry), seed=0) for entry in (evaluator, opened(objective, measure_before=True))]
    profiled, searched = list(data.labelled_calibration(PROFILED)), list(data.evaluation("search"))
    assert sum(len(labels) for _, labels in profiled) == PROFILED
    for score, batches in zip(scores, (profiled, searched), strict=True):
        found = evaluate(model, batches, predict(evaluator.dense.model, batches))
        assert score.error_before == found.error
        assert score.kl_before == pytest.approx(found.kl, rel=1e-5)
    assert scores[0].kl_before == pytest.approx(evaluator.divergence(smallest(evaluator)), rel=1e-4), "as screening measures it"
    assert scores[0].kl_before != scores[1].kl_before
    assert replace(scores[0], error_before=0.0, kl_before=0.0, seconds=0.0) == replace(
        scores[1], error_before=0.0, kl_before=0.0, seconds=0.0
    )


def test_screening_before_a_trial_does_not_change_it(objective: Objective) -> None:
    """The images and the dense model's answers are made in the trial, or were there."""
    fresh = Evaluator(load_dense(objective))
    assert replace(fresh.evaluate(smallest(fresh), seed=0), seconds=0.0) == replace(
        opened(objective).evaluate(smallest(fresh), seed=0), seconds=0.0
    )


def test_processes_of_a_group_take_turns_at_the_batches(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes and two batches: together they have every image once, one has none."""
    dense, shares = opened(objective).dense, []

    def recorded(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], answers: list[Tensor], *rest: Any) -> Any:
        shares.append([len(labels) for _, labels in batches])
        assert [len(some) for some in answers] == shares[-1]

    monkeypatch.setattr("objectives.measures.evaluate", recorded)
    for rank in range(3):
        Measures(dense, Group(rank=rank, size=3)).as_built(dense.model)
    assert shares == [[64], [36], []]


@pytest.mark.parametrize("share", [0.25, 0.99])
def test_a_recipe_is_measured_on_the_same_images(objective: Objective, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Also one whose steps are all spent before its cut: its error is never that on training images."""
    evaluator = opened(objective, finetune=replace(GOOD, recipe_share=share))
    counts = list[int]()

    def counted(*arguments: Any) -> Any:
        found = evaluate(*arguments)
        counts.append(found.count)
        return found

    monkeypatch.setattr("objectives.measures.evaluate", counted)
    score, _ = evaluate_recipe(evaluator, "vtp", limits_of(evaluator.dense, macs=0.7), seed=0)
    left = STEPS - round(share * STEPS)
    assert counts == [PROFILED, *([SEARCHED, SEARCHED] if left else [SEARCHED])]
    assert score.kl != score.kl_before


def test_a_label_that_is_no_class_is_refused(objective: Objective) -> None:
    data = load_dense(objective).data
    data._limit = 5
    with pytest.raises(DataError, match="the train split has the label 9: labels must be from 0 to 4"):
        list(data.labelled_calibration(PROFILED))
    assert sum(map(len, data.calibration(PROFILED))) == PROFILED, "labels do not matter there"


def test_a_run_keeps_the_images_that_it_began_with(tmp_path: Path) -> None:
    begun = SearchConfig(study=StudyConfig(output=str(tmp_path)), model=replace(MODEL, checkpoint=None))
    begun.dump(tmp_path / "config.yaml")
    check_same_run(tmp_path, begun)
    with pytest.raises(RunError, match="was searched with measure_before=False, not True: choose another --output"):
        check_same_run(tmp_path, replace(begun, study=replace(begun.study, measure_before=True)))
