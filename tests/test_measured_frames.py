"""Measured frames: schedules and sets of branches as the whole model has them, pruned by what they cost, safe on disk."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from local_vits import KINDS, factors_of
from torch import Tensor, nn

from objectives.cost.closed_form import cost_model
from objectives.dense_model import DenseModel, load_dense
from objectives.divergence import Reference
from objectives.dropping import measure_dropped
from objectives.evaluator import Evaluator
from objectives.frames import MeasuredFrames
from objectives.measured_frames import measure_frames
from objectives.merging import measure_schedules, worthwhile
from search.runners.job import needs_of
from spaces.errors import CheckpointError, DataError
from spaces.factors import Factors
from spaces.tokens.schedules import Schedule, schedules

MERGING = ["plain", "distilled", "registers, layer-scale", "no class token", "q/k norm"]


def divergence_of(factors: Factors, sizes: dict[str, int], images: Tensor) -> float:
    """Of the whole model run from its images: KL of the answers."""
    with torch.no_grad():
        p = factors.dense(images).double().softmax(-1)
        q = factors.build(factors.space.lossless().replace(sizes))(images).double().softmax(-1)
    return float((p * (p / q).log()).sum(-1).mean())


def measured(factors: Factors, images: Tensor, **options: Any) -> MeasuredFrames:
    return measure_frames(factors, factors.dense, torch.split(images, 24), cost_model(factors.dense, factors.space), **options)


# Schedules


@pytest.mark.parametrize("kind", MERGING)
def test_a_schedule_has_the_divergence_of_the_model_that_merges_so(
    make_vit: Callable[..., nn.Module], images: Tensor, kind: str
) -> None:
    """Though it is resumed at the first block that merges. The lossless one is first and loses nothing, as measured too."""
    factors = factors_of(make_vit(**{"depth": 4, **KINDS[kind]}), images, "contract")
    found = measured(factors, images, drop=False).schedules
    assert next(iter(found.items())) == (factors.space.schedule(factors.space.lossless()), 0.0)
    assert set(found) < set(schedules(factors.space))
    assert len(found) > 5
    for schedule, value in found.items():
        expected = divergence_of(factors, factors.space.scheduled(schedule), images)
        assert value == pytest.approx(expected, rel=1e-3, abs=1e-7), schedule


def test_schedules_come_in_the_order_of_their_macs(vit: nn.Module, images: Tensor) -> None:
    factors = factors_of(vit, images, "contract")
    costs = cost_model(vit, factors.space)
    macs = [costs.within(schedule).base["macs"] for schedule in measured(factors, images, drop=False).schedules]
    assert macs == sorted(macs, reverse=True)


def test_where_tokens_cannot_be_merged_there_is_one_schedule(make_vit: Callable[..., nn.Module], images: Tensor) -> None:
    factors = factors_of(make_vit(**KINDS["rotary"]), images, "contract")
    assert measured(factors, images, drop=False).schedules == {(): 0.0}


def test_what_another_schedule_beats_clearly_is_left_out() -> None:
    """At 80 MACs 0.4 is more than 0.3 / 0.8 at 70 MACs; 0.37 at 75 is not, and stays. The lossless one is never left out."""
    found: dict[Schedule, float] = {(9,): 0.0, (8,): 0.4, (7,): 0.37, (6,): 0.3, (5,): 0.5, (4,): 0.5}
    macs: dict[Schedule, float] = {(9,): 100.0, (8,): 80.0, (7,): 75.0, (6,): 70.0, (5,): 60.0, (4,): 60.0}
    assert worthwhile(found, macs) == {(9,): 0.0, (7,): 0.37, (6,): 0.3, (5,): 0.5, (4,): 0.5}
    assert list(worthwhile(found, macs))[:3] == [(9,), (7,), (6,)]


def test_a_schedule_that_costs_more_than_it_saves_is_left_out() -> None:
    """To match tokens takes MACs, too."""
    found: dict[Schedule, float] = {(9,): 0.0, (8,): 0.1}
    assert worthwhile(found, {(9,): 100.0, (8,): 101.0}) == {(9,): 0.0}


# Branches that are left out


@pytest.mark.parametrize("kind", ["plain", "rotary", "gated FFN"])
def test_branches_that_go_are_measured_together(make_vit: Callable[..., nn.Module], images: Tensor, kind: str) -> None:
    factors = factors_of(make_vit(**{"depth": 4, **KINDS[kind]}), images, "contract")
    found = measured(factors, images, tokens=False).dropped
    assert 1 <= len(found) <= 4, "half of the branches at most"
    gone: list[str] = []
    for branch, value in found.items():
        gone.append(branch)
        expected = divergence_of(factors, {f"{name}.branch": 0 for name in gone}, images)
        assert value == pytest.approx(expected, rel=1e-3, abs=1e-9)


def test_what_the_model_does_not_depend_on_goes_first(make_vit: Callable[..., nn.Module], images: Tensor) -> None:
    """Nothing leaves the FFN of block 2 and the attention of block 1."""
    model = make_vit(depth=4)
    silent = ["blocks.2.mlp", "blocks.1.attn"]
    with torch.no_grad():
        for name in ("blocks.2.mlp.fc2", "blocks.1.attn.proj"):
            for parameter in model.get_submodule(name).parameters():
                parameter.zero_()
    found = measured(factors_of(model, images, "contract"), images, tokens=False).dropped
    assert set(list(found)[:2]) == set(silent)
    assert max(list(found.values())[:2]) < 1e-7 < min(list(found.values())[2:])


def test_no_set_loses_half_of_what_a_constant_answer_does(
    make_vit: Callable[..., nn.Module], images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: the mean of KL(p || mean of p) over the images."""
    factors = factors_of(make_vit(depth=4), images, "contract")
    with torch.no_grad():
        p = factors.dense(images).double().softmax(-1)
    constant = float((p * (p / p.mean(0)).log()).sum(-1).mean())
    reference = Reference(factors.dense, torch.split(images, 24))
    assert reference.constant == pytest.approx(constant, rel=1e-4)
    found = measure_dropped(factors, reference, cost_model(factors.dense, factors.space))
    assert max(found.values()) <= constant / 2
    monkeypatch.setattr(Reference, "constant", 2 * min(found.values()))
    fewer = measure_dropped(factors, reference, cost_model(factors.dense, factors.space))
    assert list(fewer.items()) == list(found.items())[:1]


def test_without_classes_features_are_compared(make_vit: Callable[..., nn.Module], images: Tensor) -> None:
    """Half the squared change of the features, summed over an image, all patch tokens given back; that of their mean, too."""
    factors = factors_of(make_vit(num_classes=0, depth=4), images, "contract")
    found = measured(factors, images)
    with torch.no_grad():
        dense = factors.dense.forward_features(images)  # type: ignore[operator]
        schedule = min(found.schedules)
        built = factors.build(factors.space.identity().replace(factors.space.scheduled(schedule)))
        change = built.forward_features(images) - dense  # type: ignore[operator]
    assert schedule != factors.space.schedule(factors.space.lossless())
    assert found.schedules[schedule] == pytest.approx(float(change.square().sum((1, 2)).mean() / 2), rel=1e-3)
    variance = float((dense - dense.mean(0)).square().sum((1, 2)).mean() / 2)
    assert Reference(factors.dense, [images]).constant == pytest.approx(variance, rel=1e-4)


# Measuring


def test_nothing_is_measured_that_is_not_asked_for(vit: nn.Module, images: Tensor) -> None:
    factors = factors_of(vit, images, "contract")
    lossless = {factors.space.schedule(factors.space.lossless()): 0.0}
    nothing = MeasuredFrames(schedules=lossless, dropped={}, images=0)
    assert measure_frames(factors, vit, [], cost_model(vit, factors.space)) == nothing
    assert measured(factors, images, tokens=False, drop=False) == nothing
    assert measured(factors, images, tokens=False).schedules == lossless
    assert measured(factors, images, drop=False).dropped == {}


def test_measuring_leaves_the_dense_model_alone_and_says_how_far_it_is(vit: nn.Module, images: Tensor) -> None:
    factors = factors_of(vit, images, "contract")
    seen: dict[str, list[tuple[int, int]]] = {}
    with torch.no_grad():
        before = vit(images)
        measured(factors, images, progress=lambda what, done, total: seen.setdefault(what, []).append((done, total)))
        assert torch.equal(vit(images), before)
    assert list(seen) == ["tokens", "branches", "widths"]
    total = len(schedules(factors.space)) - 1
    assert seen["tokens"] == [(done, total) for done in range(total + 1)]
    assert seen["branches"] == [(done, 6) for done in range(7)], "three for the first of two that may go, three for the second"


def test_outputs_that_are_not_finite_name_the_schedule(vit: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    factors = factors_of(vit, images, "contract")
    build = factors.build

    def broken(allocation: dict[str, int]) -> nn.Module:
        model = build(allocation)  # type: ignore[arg-type]
        with torch.no_grad():
            model.get_parameter("blocks.1.mlp.fc2.weight").fill_(float("nan"))
        return model

    monkeypatch.setattr(factors, "build", broken)
    with pytest.raises(DataError, match=r"outputs with tokens merged to \d+, 0 are not finite on the calibration images"):
        measure_schedules(factors, Reference(vit, [images]), cost_model(vit, factors.space))


# Once a run


def prepared(evaluator: Evaluator, run: Path, images: int = 32, tokens: bool = True, drop: bool = True) -> DenseModel:
    """The same model in another run directory."""
    objective = evaluator.dense.objective
    data = replace(objective.data, profile_images=images)
    return load_dense(replace(objective, factors=run / "factors", data=data, tokens=tokens, drop=drop))


def test_frames_are_measured_once(evaluator: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run beside it takes them over; more images measure anew."""
    first = prepared(evaluator, tmp_path / "one").frames
    assert (first.images, len(first.schedules) > 1, len(first.dropped) > 0) == (32, True, True)
    assert prepared(evaluator, tmp_path / "one", images=48).frames.images == 48
    again = prepared(evaluator, tmp_path / "one").frames
    assert again == first
    monkeypatch.setattr("objectives.dense_model.measure_frames", lambda *arguments: pytest.fail("measured again"))
    assert prepared(evaluator, tmp_path / "one").frames == first
    assert prepared(evaluator, tmp_path / "two").frames == first


def test_what_is_not_searched_is_not_measured(evaluator: Evaluator, tmp_path: Path) -> None:
    """And has a file of its own: a run beside it that searches more does not take it over."""
    tokens = prepared(evaluator, tmp_path / "one", drop=False).frames
    assert (len(tokens.schedules) > 1, tokens.dropped) == (True, {})
    dropped = prepared(evaluator, tmp_path / "two", tokens=False).frames
    assert (len(dropped.schedules), len(dropped.dropped) > 0) == (1, True)
    neither = prepared(evaluator, tmp_path / "three", tokens=False, drop=False).frames
    assert (len(neither.schedules), neither.dropped, neither.images) == (1, {}, 0)
    both = prepared(evaluator, tmp_path / "four").frames
    assert (both.schedules, both.dropped) == (tokens.schedules, dropped.dropped)


@pytest.mark.parametrize("asked", [True, False])
def test_a_worker_measures_frames_where_allocations_are_built(asked: bool) -> None:
    needs = needs_of(latency=False, factors=asked, profile=False, frames=True, batches=False)
    assert needs == (["factors", "frames"] if asked else [])


# On disk


@pytest.fixture(scope="module")
def found(vit: nn.Module, images: Tensor) -> tuple[MeasuredFrames, Factors]:
    factors = factors_of(vit, images, "contract")
    return measured(factors, images), factors


@pytest.fixture
def stored(found: tuple[MeasuredFrames, Factors], tmp_path: Path) -> tuple[Path, MeasuredFrames, Factors]:
    frames, factors = found
    frames.save(tmp_path / "mark.json", "mark")
    return tmp_path / "mark.json", frames, factors


def test_save_and_load(stored: tuple[Path, MeasuredFrames, Factors]) -> None:
    """In the same order."""
    path, frames, factors = stored
    again = MeasuredFrames.load(path, "mark", factors.space)
    assert again == frames
    assert list(again.schedules) == list(frames.schedules)
    assert list(again.dropped) == list(frames.dropped)
    assert MeasuredFrames.load(path, "other", factors.space) is None
    path.write_text(path.read_text().replace('"format": 2', '"format": 1'))
    assert MeasuredFrames.load(path, "mark", factors.space) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schedules": []}, "the first of schedules"),
        ({"schedules": [{"tokens": [16, 0], "error": 0.5}]}, "the first of schedules"),
        ({"schedules": [{"tokens": [16, 0], "error": 0.0}, {"tokens": [7, 0], "error": 0.5}]}, "cannot be 7"),
        ({"schedules": [{"tokens": [16, 0], "error": 0.0}, {"tokens": [16, 8], "error": 0.5}]}, "cannot be 8"),
        ({"schedules": [{"tokens": [16, 0], "error": 0.0}, {"tokens": [8], "error": 0.5}]}, "one of 1 blocks"),
        ({"schedules": [{"tokens": [16, 0], "error": 0.0}, {"tokens": [8, "0"], "error": 0.5}]}, "a whole number"),
        ({"schedules": [{"tokens": [16, 0], "error": 0.0}, {"tokens": [8, 0], "error": -1}]}, "nats, 0 or more"),
        ({"dropped": [{"branch": "blocks.7.attn", "error": 0.5}]}, "'blocks.7.attn', which cannot be left out"),
        ({"dropped": [{"branch": "blocks.0.attn", "error": float("nan")}]}, "nats, 0 or more"),
        ({"dropped": {"blocks.0.attn": 0.5}}, "a list"),
        ({"images": "all"}, "images must be"),
    ],
)
def test_a_damaged_file_is_named(stored: tuple[Path, MeasuredFrames, Factors], change: dict[str, Any], reason: str) -> None:
    path, _, factors = stored
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=rf"mark\.json cannot be read \(.*{reason}.*\): delete the file"):
        MeasuredFrames.load(path, "mark", factors.space)


def test_a_cut_file_is_named(stored: tuple[Path, MeasuredFrames, Factors]) -> None:
    path, _, factors = stored
    path.write_text(path.read_text()[:40])
    with pytest.raises(CheckpointError, match=r"mark\.json cannot be read"):
        MeasuredFrames.load(path, "mark", factors.space)
