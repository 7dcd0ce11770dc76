"""What all trials of a run read alike: the same as made anew, within its limit, and no harm where it is damaged."""

import errno
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from local_digits import DATA, MODEL, evaluator_of, limits_of
from local_launches import TIMES, Silent, config_of
from local_vits import cut
from safetensors.torch import load_file
from torch import Tensor

from objectives.data.loaders import Data
from objectives.data.stored import Stored, open_stored, size_of, store
from objectives.data.variation import training_transform
from objectives.dense_model import DenseModel, load_dense
from objectives.evaluator import Evaluator
from objectives.objective import Objective
from objectives.recipes.registry import evaluate_recipe
from objectives.runtime.distributed import ALONE, Group
from objectives.runtime.seeding import seed_everything
from objectives.score import Score
from objectives.training.batch import Batch
from objectives.training.config import FinetuneConfig
from objectives.training.run_batches import CACHE, remove_batches
from search import audit, launch
from spaces.allocation import Allocation
from spaces.models.create import create_model, preprocessing

STEPS = 6
BATCHES = STEPS * 32 * (64 + 8 + 40)  # bytes: 8x8 pixels, a label, ten logits in float32
SOFT = STEPS * 32 * (8 + 40)
SEARCH = 297 * (64 + 8)


@pytest.fixture
def objective(tmp_path: Path) -> Objective:
    torch.manual_seed(0)
    options: dict[str, Any] = {"data": DATA, "finetune": FinetuneConfig(steps=STEPS), "rungs": (0.5,)}
    return evaluator_of(create_model(MODEL), tmp_path, **options).dense.objective


def opened(objective: Objective, keep: bool = True, **options: Any) -> DenseModel:
    """A dense model as another process would load it."""
    dense = load_dense(replace(objective, **options))
    if keep:
        dense.keep_search()
        dense.keep_training()
    return dense


def folder_of(objective: Objective) -> Path:
    return objective.factors.parent / CACHE


def names(objective: Objective) -> list[str]:
    """What is kept, by its name."""
    return sorted(path.name.partition(".")[0] for path in folder_of(objective).glob("[!.]*"))


def is_same(first: list[Batch], second: list[Batch]) -> bool:
    fields = ("images", "labels", "soft")
    pairs = [(getattr(one, name), getattr(two, name)) for one, two in zip(first, second, strict=True) for name in fields]
    return all(torch.equal(one, two) for one, two in pairs)


def small(dense: DenseModel) -> Allocation:
    return cut(dense.space, lambda site: site.choices[0])


def trial(dense: DenseModel, weights: Path) -> Score:
    score = Evaluator(dense).evaluate(small(dense), 0, weights=weights, on_rung=lambda step, error: False)
    return replace(score, seconds=0.0)


def unread(monkeypatch: pytest.MonkeyPatch, *methods: str) -> None:
    """Fail where an image is read."""

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("an image was read")

    for method in methods:
        monkeypatch.setattr(Data, method, fail)


# The same as made anew


def test_kept_batches_are_those_made_anew(objective: Objective) -> None:
    plain, kept = opened(objective, keep=False), opened(objective)
    anew = list(plain.batches.training(STEPS, 0))
    assert is_same(list(kept.batches.training(STEPS, 0)), anew)
    assert is_same(list(kept.batches.training(2, 0)), anew[:2])
    for most in (None, 100):
        pairs = zip(kept.batches.search(most), plain.batches.search(most), strict=True)
        assert all(torch.equal(one, two) for pair in pairs for one, two in zip(*pair, strict=True))


def test_a_trial_is_the_same_to_the_bit(objective: Objective, tmp_path: Path) -> None:
    plain, kept = opened(objective, keep=False), opened(objective)
    scores = [trial(dense, tmp_path / name) for dense, name in ((plain, "plain"), (kept, "kept"))]
    assert scores[0] == scores[1]
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "kept").read_bytes()
    assert load_file(tmp_path / "kept")


def test_a_recipe_is_the_same_to_the_bit(objective: Objective, tmp_path: Path) -> None:
    for name, keep in (("plain", False), ("kept", True)):
        dense = opened(objective, keep)
        evaluate_recipe(Evaluator(dense), "vtp", limits_of(dense, macs=0.7), 0, weights=tmp_path / name)
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "kept").read_bytes()


def test_what_is_kept_is_not_read_again(objective: Objective, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not by the process that made it, and not by the next one; nor is the dense model asked."""
    made = opened(objective)
    _ = made.answers, made.factors, made.screening
    unread(monkeypatch, "training_pixels", "evaluation_pixels")
    score = trial(made, tmp_path / "first")
    second = opened(objective)
    monkeypatch.setattr("objectives.training.run_batches.soft_labels", None)
    assert trial(second, tmp_path / "second") == score


def test_processes_that_share_a_candidate_keep_their_own_parts(objective: Objective) -> None:
    plain, kept = opened(objective, keep=False), opened(objective, keep=False)
    kept.keep_search()
    for rank in (0, 1):
        group = Group(rank=rank, size=2)
        kept.keep_training(group)
        assert is_same(list(kept.batches.training(STEPS, 0, group)), list(plain.batches.training(STEPS, 0, group)))
        pairs = zip(kept.batches.search(group=group), plain.batches.search(group=group), strict=True)
        assert all(torch.equal(one[0], two[0]) for one, two in pairs)
    assert names(objective) == ["search", "training-0-of-2", "training-1-of-2"]
    assert size_of(folder_of(objective)) == pytest.approx(kept.batches.needed(Group(size=2)), rel=0.1)


@pytest.mark.parametrize("distillation", [0.0, 0.7])
def test_without_distillation_there_are_no_soft_labels(objective: Objective, distillation: float) -> None:
    dense = opened(objective, finetune=FinetuneConfig(steps=STEPS, distillation=distillation))
    found = list(dense.batches.training(STEPS, 0))
    assert [batch.soft is None for batch in found] == [distillation == 0] * STEPS


def test_other_batches_are_made_for_other_options(objective: Objective) -> None:
    first = list(opened(objective).batches.training(STEPS, 0))
    for other in (
        replace(objective, seed=1),
        replace(objective, data=replace(DATA, scale=(0.3, 0.9))),
        replace(objective, finetune=FinetuneConfig(steps=STEPS, amp="on")),
    ):
        dense, plain = opened(other), opened(other, keep=False)
        found = list(dense.batches.training(STEPS, other.seed))
        assert is_same(found, list(plain.batches.training(STEPS, other.seed)))
        assert not is_same(found, first)
        assert names(other) == ["search", "training"] or other.data != DATA


def test_more_steps_than_are_kept(objective: Objective) -> None:
    """As an audit's: they are made again, and take the place of the others."""
    opened(objective)
    long = opened(objective, finetune=FinetuneConfig(steps=2 * STEPS))
    short = opened(objective, keep=False)
    assert is_same(list(long.batches.training(2 * STEPS, 0))[:STEPS], list(short.batches.training(STEPS, 0)))
    assert names(objective) == ["search", "training"]


# Limits


def test_it_takes_what_was_told(objective: Objective) -> None:
    dense = opened(objective)
    told = dense.batches.needed()
    assert told == BATCHES + SEARCH
    assert told <= size_of(folder_of(objective)) <= told + 2500, "with two tables of contents"


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        (0, []),
        (10, []),
        (SEARCH + 1200, ["search"]),
        (SEARCH + SOFT + 3000, ["search", "training"]),
        (SEARCH + BATCHES + 3000, ["search", "training"]),
    ],
)
def test_the_limit_holds(objective: Objective, limit: int, kept: list[str]) -> None:
    """Without room for the pixels there may be room for the soft labels; batches are the same."""
    plain = opened(objective, keep=False)
    dense = opened(objective, cache=limit / 1e9)
    assert names(objective) == kept
    assert size_of(folder_of(objective)) <= limit
    assert is_same(list(dense.batches.training(STEPS, 0)), list(plain.batches.training(STEPS, 0)))


def test_only_soft_labels(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = opened(objective, keep=False)
    limit = (SEARCH + SOFT + 3000) / 1e9
    dense = opened(objective, cache=limit)
    (folder,) = folder_of(objective).glob("training.*")
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "labels", "soft"]
    anew = list(plain.batches.training(STEPS, 0))
    monkeypatch.setattr("objectives.training.batch.soft_labels", None)
    monkeypatch.setattr("objectives.training.run_batches.soft_labels", None)
    second = opened(objective, cache=limit)
    for process in (dense, second):
        assert is_same(list(process.batches.training(STEPS, 0)), anew), "made by the first process alone"


def test_a_small_disk_by_default(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=4 * (SEARCH + SOFT + 3000)))
    dense = opened(objective)
    assert SEARCH + SOFT < size_of(folder_of(objective)) <= SEARCH + SOFT + 3000, "a quarter of what is free"
    assert len(list(dense.batches.training(STEPS, 0))) == STEPS


# Damage


def remove(path: Path) -> None:
    path.unlink()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("damage", [remove, cut_short, flip, lengthen])
@pytest.mark.parametrize("name", ["search.*/pixels", "search.*/labels", "training.*/soft", "training.*/index.json"])
def test_damaged_files_are_made_anew(objective: Objective, damage: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    whole = trial(opened(objective), tmp_path / "whole")
    (path,) = folder_of(objective).glob(name)
    before = path.read_bytes()
    damage(path)
    assert trial(opened(objective), tmp_path / "again") == whole
    (again,) = folder_of(objective).glob(name)
    assert again.read_bytes() == before or name.endswith(".json")


def test_a_full_disk_keeps_nothing_and_stops_nothing(
    objective: Objective, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(folder: Path, batches: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

    whole = trial(opened(objective, keep=False), tmp_path / "plain")
    monkeypatch.setattr("objectives.training.run_batches.store", full)
    dense = opened(objective)
    assert names(objective) == []
    assert trial(dense, tmp_path / "full") == whole


def test_what_is_removed_while_a_process_uses_it_stays_there_for_it(objective: Objective, tmp_path: Path) -> None:
    dense = opened(objective)
    whole = trial(dense, tmp_path / "first")
    remove_batches(folder_of(objective).parent)
    assert not folder_of(objective).exists()
    assert trial(dense, tmp_path / "second") == whole


def make(objective: Objective) -> None:
    opened(objective)


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_at_once(objective: Objective) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=make, args=(objective,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    plain = opened(objective, keep=False)
    assert is_same(list(opened(objective).batches.training(STEPS, 0)), list(plain.batches.training(STEPS, 0)))
    assert names(objective) == ["search", "training"]


# Launches


@pytest.mark.slow
def test_a_launch_keeps_them_until_it_is_done(tmp_path: Path) -> None:
    """An interrupted one leaves them for the next; trials are those of a launch that keeps nothing."""
    reporter, folder = Silent(stop_at=2), tmp_path / "run" / CACHE
    with pytest.raises(KeyboardInterrupt):
        launch(config_of(tmp_path), reporter)
    assert reporter.outlook is not None
    assert reporter.outlook.needed <= size_of(folder) == reporter.outlook.kept
    found = launch(config_of(tmp_path), Silent()).trials
    assert not folder.exists()
    bare = Silent()
    anew = launch(config_of(tmp_path, output=str(tmp_path / "bare"), cache=0), bare).trials
    assert bare.outlook is not None
    assert bare.outlook.kept == 0
    pd.testing.assert_frame_equal(found.drop(columns=TIMES), anew.drop(columns=TIMES))


@pytest.mark.slow
def test_a_launch_with_nothing_left_to_do_makes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch(config_of(tmp_path), Silent())
    unread(monkeypatch, "training_pixels", "evaluation_pixels")
    again = Silent()
    launch(config_of(tmp_path), again)
    assert not {"search images", "batches"} & again.stages.keys()
    assert not (tmp_path / "run" / CACHE).exists()


@pytest.mark.slow
def test_an_audit_makes_its_own_and_removes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, made = launch(config_of(tmp_path), Silent()), list[int]()
    taken = Data.training_pixels

    def counted(data: Data, steps: int, seed: int, *rest: Any, **options: Any) -> Any:
        made.append(seed)
        return taken(data, steps, seed, *rest, **options)

    monkeypatch.setattr(Data, "training_pixels", counted)
    audit(run, points=3, factor=2, seeds=2)
    assert made == [1, 2], "once a seed"
    assert not (tmp_path / "run" / CACHE).exists()


# Files


def chunks() -> Iterator[Mapping[str, Tensor]]:
    for index, rows in enumerate((3, 3, 1)):
        pixels = torch.full((rows, 2, 4), index, dtype=torch.uint8)
        yield {"pixels": pixels, "soft": torch.full((rows, 5), index / 3), "labels": torch.arange(rows)}


def test_arrays_come_back(tmp_path: Path) -> None:
    store(tmp_path / "some", chunks())
    found = open_stored(tmp_path / "some")
    assert isinstance(found, Stored)
    assert found.batches == (3, 3, 1)
    for one, two in zip(found.rows(), chunks(), strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in two)
    assert open_stored(tmp_path / "others") is None


def test_rows_that_do_not_fit_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        store(tmp_path / "some", iter([{"soft": torch.zeros(2, 3)}, {"soft": torch.zeros(2, 4)}]))
    assert list(tmp_path.iterdir()) == []


# Pixels


def test_pixels_are_whole_numbers_and_become_what_the_transform_makes() -> None:
    data = Data(DATA, preprocessing(create_model(MODEL), MODEL))
    whole = training_transform(DATA, data.preprocessing)
    assert data.pixels.are_whole_numbers(whole)
    erased = training_transform(DATA, data.preprocessing, re_prob=0.5)
    assert not data.pixels.are_whole_numbers(erased), "what follows the normalisation is done before"
    assert data.pixels.before(erased) is erased
    image = data.reading.convert(data._bases["train"][0][0])
    for transform in (whole, data._whole_transform(training=False)):
        seed_everything(3)
        expected = transform(image)
        seed_everything(3)
        pixels = data.pixels.before(transform)(image)
        assert pixels.dtype == torch.uint8
        assert torch.equal(data.pixels.input(pixels[None]), expected[None])


def test_alone_is_a_group_of_one() -> None:
    assert Group(rank=0, size=1) == ALONE
