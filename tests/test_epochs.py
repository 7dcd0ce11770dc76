"""The long fine-tune: the best weights by the search split, and an end that does not depend on where it was killed."""

import math
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from local_digits import DATA, evaluator_of
from local_digits import MODEL as DIGITS_MODEL
from timm.layers import DropPath
from torch import nn

from objectives.error import evaluate
from objectives.evaluator import Evaluator
from objectives.training.config import FinetuneConfig, TrainingConfig
from objectives.training.epochs import train
from objectives.training.long_finetune import Course, Trained
from spaces.errors import ConfigError, DivergedError
from spaces.models.create import create_model

STEPS = 8  # of an epoch: 1,140 images in batches of 128


class Killed(BaseException):
    """As a signal ends a process: nothing may handle it."""


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    torch.manual_seed(0)
    data = replace(DATA, batch_size=128, calibration_size=64, scale=(0.8, 1.0))
    return evaluator_of(create_model(DIGITS_MODEL), tmp_path_factory.mktemp("runs"), data=data)


@pytest.fixture
def course(evaluator: Evaluator) -> Callable[..., Course]:
    def make(epochs: int = 3, lr: float = 3e-3, **options: Any) -> Course:
        config = TrainingConfig(finetune_epochs=epochs, **{"drop_path": 0.2, **options})
        return Course(config=config, finetune=FinetuneConfig(lr=lr), data=evaluator.dense.data, classes=10, seed=0)

    return make


class At:
    """A progress that raises after so many steps, once; notes the steps that it was told."""

    def __init__(self, *events: tuple[int, BaseException | type[BaseException]]) -> None:
        self.events, self.steps = list(events), list[int]()

    def __call__(self, what: str, done: int, total: int) -> None:
        self.steps.append(done)
        if self.events and done == self.events[0][0]:
            raise self.events.pop(0)[1]


def run(evaluator: Evaluator, course: Course, path: Path, progress: Any = At()) -> tuple[dict[str, Any], Trained]:  # noqa: B008
    model, trained = train(evaluator.dense.model, course, evaluator.dense.teacher, path, progress=progress)
    return model.state_dict(), trained


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def figures(trained: Trained) -> Trained:
    return replace(trained, epochs=tuple(replace(epoch, seconds=0.0) for epoch in trained.epochs))


def test_it_ends_as_one_that_was_not_killed(evaluator: Evaluator, course: Callable[..., Course], tmp_path: Path) -> None:
    """Killed in the first epoch, in the second and in the third; random numbers were drawn between."""
    expected, whole = run(evaluator, course(), tmp_path / "whole")
    assert len(whole.epochs) == 3
    assert whole.error < whole.start_error - 0.2
    for end in (STEPS - 2, STEPS + 4, 3 * STEPS - 1):
        with pytest.raises(Killed):
            run(evaluator, course(), tmp_path / "killed", At((end, Killed)))
        torch.rand(7), random.random()
    last = At()
    found, trained = run(evaluator, course(), tmp_path / "killed", last)
    assert last.steps == list(range(2 * STEPS + 1, 3 * STEPS + 1))
    assert figures(trained) == figures(whole)
    assert same(found, expected)
    again = At()
    assert same(run(evaluator, course(), tmp_path / "killed", again)[0], expected)
    assert again.steps == []


def test_the_least_error_on_the_search_split_is_kept(
    evaluator: Evaluator, course: Callable[..., Course], tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in evaluator.dense.model.state_dict().items()}
    model, trained = train(evaluator.dense.model, course(4, lr=1e-2), evaluator.dense.teacher, tmp_path / "state")
    errors = [error for epoch in trained.epochs for error in (epoch.error, epoch.ema_error)]
    assert trained.start_error is not None
    assert trained.error == min(error for error in errors if error is not None) < trained.start_error
    kept = trained.epochs[trained.best_epoch - 1]
    assert trained.error == (kept.ema_error if trained.best_weights == "ema" else kept.error)
    assert evaluate(model, evaluator.dense.data.evaluation("search")).error == trained.error
    assert evaluate(evaluator.dense.model, evaluator.dense.data.evaluation("search")).error == trained.start_error
    assert same(evaluator.dense.model.state_dict(), before)
    assert not any(isinstance(module, DropPath) for module in model.modules())


def test_what_begins_better_is_kept(evaluator: Evaluator, course: Callable[..., Course], tmp_path: Path) -> None:
    good, _ = run(evaluator, course(), tmp_path / "good")
    model = create_model(DIGITS_MODEL)
    model.load_state_dict(good)
    config = course(1, lr=1.0)
    found, trained = train(model, config, evaluator.dense.teacher, tmp_path / "bad")
    assert (trained.best_epoch, trained.best_weights) == (0, "start")
    assert trained.error == trained.start_error < trained.epochs[0].error
    assert same(found.state_dict(), good)


def test_learning_rate_warms_up_and_falls(evaluator: Evaluator, course: Callable[..., Course], tmp_path: Path) -> None:
    """The last step of each of three epochs of a cosine over 24 steps, after two of warm-up."""
    _, trained = run(evaluator, course(3, finetune_lr=1e-3, model_ema_decay=0), tmp_path / "state")
    expected = [1e-3 * (1 + math.cos(math.pi * step / 24)) / 2 for step in (7, 15, 23)]
    assert [epoch.lr for epoch in trained.epochs] == pytest.approx(expected, rel=1e-6)
    assert [epoch.ema_error for epoch in trained.epochs] == [None] * 3


def test_a_batch_that_is_too_large_is_split(evaluator: Evaluator, course: Callable[..., Course], tmp_path: Path) -> None:
    progress = At((STEPS + 2, torch.OutOfMemoryError("out of memory")), (2 * STEPS + 1, Killed))
    with pytest.raises(Killed):
        run(evaluator, course(), tmp_path / "state", progress)
    assert progress.steps[STEPS + 2 :] == list(range(STEPS + 1, 2 * STEPS + 2))
    _, trained = run(evaluator, course(), tmp_path / "state")
    assert trained.parts == 2
    assert len(trained.epochs) == 3


def test_one_that_diverges_leaves_nothing(evaluator: Evaluator, course: Callable[..., Course], tmp_path: Path) -> None:
    model = create_model(DIGITS_MODEL)
    with torch.no_grad():
        model.head.bias.fill_(math.nan)  # type: ignore[union-attr,operator]
    with pytest.raises(DivergedError):
        train(model, course(), evaluator.dense.teacher, tmp_path / "state")

    def spoil(what: str, done: int, total: int) -> None:
        if done == STEPS + 1:
            assert (tmp_path / "state").exists()
            raise DivergedError("the loss became nan at step 9 of 24: lower --lr")

    with pytest.raises(DivergedError, match="step 9 of 24: lower --finetune-lr"):
        run(evaluator, course(), tmp_path / "state", spoil)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("change", ["config", "finetune", "seed", "conditions"])
def test_the_state_of_another_one_is_not_taken(
    evaluator: Evaluator, course: Callable[..., Course], tmp_path: Path, change: str
) -> None:
    first = course()
    with pytest.raises(Killed):
        run(evaluator, first, tmp_path / "state", At((STEPS + 1, Killed)))
    other: dict[str, Any] = {
        "config": replace(first.config, reprob=0.5), "finetune": FinetuneConfig(lr=1e-3), "seed": 1, "conditions": ("other",),
    }  # fmt: skip
    progress = At((1, Killed))
    with pytest.raises(Killed):
        run(evaluator, replace(first, **{change: other[change]}), tmp_path / "state", progress)
    assert progress.steps == [1]
    assert not (tmp_path / "state").exists()


def test_drop_path_rises_along_the_blocks(
    evaluator: Evaluator, course: Callable[..., Course], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[list[float]] = []

    def watch(model: nn.Module, batches: Any, *arguments: Any, **options: Any) -> Any:
        rates.append([module.drop_prob for module in model.modules() if isinstance(module, DropPath)])
        return iter(())

    monkeypatch.setattr("objectives.training.epochs.finetune", watch)
    run(evaluator, course(drop_path=0.3), tmp_path / "state")
    assert rates == [pytest.approx([0.3, 0.3])]  # attention and FFN of the second block; the first one's are 0


def test_mixup_mixes_images_as_their_labels(evaluator: Evaluator, course: Callable[..., Course]) -> None:
    """With mixup alone, image i of a batch is lam x_i + (1 - lam) x_(B-1-i); its probabilities tell lam."""
    made = course(1, mixup=1.0, cutmix=0.0, smoothing=0.0, reprob=0.0)
    mixed = list(made.batches(evaluator.group, torch.device("cpu")))
    plain = list(evaluator.dense.data.epoch(0, seed=0))
    assert len(mixed) == STEPS
    shares = []
    for (images, targets), (x, labels) in zip(mixed, plain, strict=True):
        assert torch.allclose(targets.sum(1), torch.ones(len(targets)))
        apart = labels != labels.flip(0)
        lam = float(targets[apart].gather(1, labels[apart, None]).mean())
        assert torch.allclose(images, lam * x + (1 - lam) * x.flip(0), atol=1e-5)
        shares.append(round(lam, 4))
    assert len(set(shares)) > 3


def test_without_mixing_labels_are_smoothed(evaluator: Evaluator, course: Callable[..., Course]) -> None:
    """Of 10 classes, 0.1 of the weight is spread evenly: 0.91 and nine times 0.01."""
    made = course(1, mixup=0.0, cutmix=0.0, smoothing=0.1, reprob=0.0)
    images, targets = next(made.batches(evaluator.group, torch.device("cpu")))
    x, labels = next(evaluator.dense.data.epoch(0, 0))
    assert torch.equal(images, x)
    assert torch.allclose(targets.sort(dim=1).values[0], torch.tensor([0.01] * 9 + [0.91]))
    assert torch.equal(targets.argmax(1), labels)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"finetune_epochs": -1}, "finetune_epochs must be at least 0, got -1"),
        ({"finetune_lr": 0.0}, "finetune_lr must be positive, got 0.0"),
        ({"mixup": -0.1}, "mixup must be at least 0"),
        ({"model_ema_decay": 1.0}, "model_ema_decay must be at least 0 and below 1, got 1.0"),
        ({"reprob": math.nan}, "reprob must be"),
        ({"aa": "strong"}, "aa must be auto, none or begin with rand"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        TrainingConfig(**options)


def test_auto_augment_is_for_images_that_bear_it(evaluator: Evaluator) -> None:
    """8 x 8 digits get none; what was asked for counts."""
    assert TrainingConfig().policy(evaluator.dense.data.preprocessing["input_size"], evaluator.dense.data.config.aa) is None
    assert TrainingConfig(aa="3a").policy((3, 32, 32), None) == "3a"
    assert set(asdict(TrainingConfig())) >= {"aa", "reprob", "mixup", "cutmix", "smoothing", "drop_path"}
