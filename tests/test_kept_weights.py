"""A fine-tune never makes a candidate worse: of its weights as built, at the rungs and at the end the best are kept."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from local_digits import DATA, MODEL, evaluator_of, limits_of
from local_vits import cut
from safetensors.torch import load_file
from torch import Tensor, nn

from objectives.dense_model import load_dense
from objectives.error import Evaluation
from objectives.evaluator import Evaluator, go_on
from objectives.objective import Objective
from objectives.outcomes import Outcomes
from objectives.recipes.registry import evaluate_recipe
from objectives.runtime.progress import Step
from objectives.score import Score
from objectives.training.config import FinetuneConfig
from objectives.training.kept import Best
from spaces.allocation import Allocation
from spaces.models.create import create_model

STEPS = 6  # rungs after 2 and 4
GOOD = FinetuneConfig(steps=STEPS, lr=3e-4, distillation=1.0)
BAD = replace(GOOD, lr=1.0)


class Killed(BaseException):
    """As a signal ends a process: nothing may handle it."""


@pytest.fixture(scope="module")
def objective(tmp_path_factory: pytest.TempPathFactory) -> Objective:
    torch.manual_seed(0)
    model = create_model(MODEL)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)  # so that no step changes everything
    data, folder = replace(DATA, calibration_size=64, profile_images=64), tmp_path_factory.mktemp("runs")
    evaluator = evaluator_of(model, folder, data=data, finetune=GOOD, rungs=(1 / 3, 2 / 3))
    _ = evaluator.dense.factors, evaluator.dense.answers
    return evaluator.dense.objective


class Watched(Evaluator):
    """Builds candidates that a fine-tune can mend; keeps the weights at every rung; spoils them after one step, dies after
    another.
    """

    def __init__(self, objective: Objective, spoil: int = 0, end: int = 0, **changes: Any) -> None:
        super().__init__(load_dense(replace(objective, **changes)))
        self.spoil, self.end, self.weights = spoil, end, dict[int, dict[str, Tensor]]()

    def build(self, allocation: Allocation) -> nn.Module:
        self.model = super().build(allocation)
        if allocation != self.dense.space.identity():
            with torch.no_grad():
                self.model.get_parameter("head.bias")[0] += 1.0
        self._note(0)
        return self.model

    def run(self, folder: Path, allocation: Allocation | None = None, checkpoint: Path | None = None) -> Score:
        score = self.evaluate(
            allocation or half(self), 0, self._on_step, folder / "weights", self._on_rung, checkpoint, folder / "outcomes"
        )
        self._note(-1)
        return replace(score, seconds=0.0)

    def _on_step(self, step: Step) -> None:
        if step.step == self.spoil:
            with torch.no_grad():
                self.model.get_parameter("head.weight").neg_()
        if step.step == self.end:
            raise Killed

    def _on_rung(self, step: int, error: float) -> bool:
        self._note(step)
        return False

    def _note(self, step: int) -> None:
        self.weights[step] = {name: value.clone() for name, value in self.model.state_dict().items()}


def half(evaluator: Evaluator) -> Allocation:
    return cut(evaluator.dense.space, lambda site: site.choices[len(site.choices) // 3])


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def figures(kl: float, cross_entropy: float = 1.0) -> Evaluation:
    return Evaluation(error=0.5, kl=kl, count=1, cross_entropy=cross_entropy)


def test_the_best_weights_diverge_least() -> None:
    begun = Best.begin(figures(0.5))
    assert begun == Best(step=0, loss=0.5)
    assert begun.beaten(figures(0.6, cross_entropy=0.0), 2) is None
    assert begun.beaten(figures(0.5), 4) == Best(step=4, loss=0.5), "of equal ones the last"
    assert begun.beaten(figures(0.4), 6) == Best(step=6, loss=0.4)


def test_of_the_dense_model_they_know_the_labels_best() -> None:
    begun = Best.begin(figures(1e-9, cross_entropy=2.0))
    assert begun == Best(step=0, loss=2.0, labels=True)
    assert begun.beaten(figures(0.3, cross_entropy=1.5), 6) == Best(step=6, loss=1.5, labels=True)
    assert begun.beaten(figures(0.0, cross_entropy=2.5), 6) is None


def test_a_fine_tune_that_helps_is_kept(objective: Objective, tmp_path: Path) -> None:
    evaluator = Watched(objective)
    score = evaluator.run(tmp_path)
    built = replace(objective, finetune=replace(GOOD, steps=0))
    assert score.kept_step == STEPS
    assert (score.kl or 1.0) < (Watched(built).run(tmp_path / "built").kl or 0.0)
    assert not same(evaluator.weights[0], load_file(tmp_path / "weights"))


@pytest.mark.parametrize("before", [False, True])
def test_a_fine_tune_that_harms_leaves_a_candidate_as_built(objective: Objective, tmp_path: Path, before: bool) -> None:
    """Weights, figures and outcomes are those of a trial of no steps."""
    evaluator = Watched(objective, finetune=BAD, measure_before=before)
    score, built = evaluator.run(tmp_path), Watched(objective, finetune=replace(BAD, steps=0)).run(tmp_path / "built")
    assert (score.kept_step, score.steps) == (0, STEPS)
    assert (score.error, score.kl, score.cross_entropy) == (built.error, built.kl, built.cross_entropy)
    assert same(evaluator.weights[0], load_file(tmp_path / "weights"))
    assert (tmp_path / "outcomes").read_bytes() == (tmp_path / "built" / "outcomes").read_bytes()


@pytest.mark.parametrize(("spoil", "kept", "end"), [(1, 0, 5), (3, 2, 5), (5, 4, 6)])
def test_the_best_rung_is_kept_also_by_one_that_goes_on(
    objective: Objective, tmp_path: Path, spoil: int, kept: int, end: int
) -> None:
    """Spoilt before the first rung, before the second or after it; killed after the second."""
    evaluator = Watched(objective, spoil)
    whole = evaluator.run(tmp_path / "whole")
    assert whole.kept_step == kept
    assert same(evaluator.weights[kept], load_file(tmp_path / "whole" / "weights"))
    with pytest.raises(Killed):
        Watched(objective, spoil, end).run(tmp_path / "killed", checkpoint=tmp_path / "state")
    assert (tmp_path / "state").exists()
    again = Watched(objective, spoil)
    assert again.run(tmp_path / "killed", checkpoint=tmp_path / "state") == whole
    assert list(again.weights) == [0, -1], "no rung came again"
    for name in ("weights", "outcomes"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_dense_reference_learns_labels_or_stays_as_it_is(objective: Objective, tmp_path: Path) -> None:
    good, bad = (Watched(objective, finetune=replace(config, distillation=0.0)) for config in (GOOD, BAD))
    identity, figures = good.dense.space.identity(), good.dense.figures
    learnt = good.run(tmp_path / "good", identity)
    assert learnt.kept_step == STEPS and learnt.kl is not None and learnt.kl > 1e-5
    assert learnt.cross_entropy is not None and figures.cross_entropy is not None
    assert learnt.cross_entropy < figures.cross_entropy
    spoilt = bad.run(tmp_path / "bad", identity)
    assert (spoilt.kept_step, spoilt.error) == (0, figures.error)


def test_a_recipe_is_no_worse_than_its_cut(objective: Objective, tmp_path: Path) -> None:
    evaluator = Watched(objective, finetune=BAD)
    limits = limits_of(evaluator.dense, macs=0.6)
    assert evaluate_recipe(evaluator, "magnitude", limits, seed=0)[0].kept_step == 0
    model, batches = evaluator.build(half(evaluator)), evaluator.dense.batches.training(STEPS, 0)
    score = evaluator.finish(model, {"macs": 1}, batches, time.perf_counter(), spent=2, weights=tmp_path / "weights")
    assert score.kept_step == 2
    assert same(evaluator.weights[0], load_file(tmp_path / "weights"))


def test_figures_of_rung_images_follow_from_those_of_the_split(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("objectives.measures.RUNG_IMAGES", 50)
    evaluator = Watched(objective)
    model = evaluator.build(half(evaluator))
    found, expected = (
        evaluator.measures.rung_images_of(evaluator.measures.search(model)),
        evaluator.measures.rung_images(model),
    )
    assert (found.count, found.error) == (expected.count, expected.error) == (50, expected.error)
    assert found.kl == pytest.approx(expected.kl, rel=1e-5)
    assert found.cross_entropy == pytest.approx(expected.cross_entropy, rel=1e-5)


def test_kept_outcomes_are_those_of_the_kept_weights(objective: Objective, tmp_path: Path) -> None:
    score = Watched(objective, finetune=BAD).run(tmp_path)
    outcomes = Outcomes.load(tmp_path / "outcomes")
    assert float(outcomes.wrong.double().mean()) == score.error


def test_what_is_asked_at_no_rung_keeps_none(objective: Objective) -> None:
    spoilt = Watched(objective, spoil=3)
    assert spoilt.evaluate(half(spoilt), 0, spoilt._on_step).kept_step == 0
    assert spoilt.evaluate(half(spoilt), 0, spoilt._on_step, on_rung=go_on).kept_step == 2
