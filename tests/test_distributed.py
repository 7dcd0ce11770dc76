"""One candidate evaluated by two processes, as by one: the same images, gradients, sums and decisions."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from local_digits import DATA, MODEL, SIZE, evaluator_of, limits_of
from local_group import Pair, group_of
from local_images import GREY, numbers_of, opened, same, whole_split
from local_vits import cut
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from objectives.data.loaders import Data
from objectives.dense_model import load_dense
from objectives.error import Evaluation, evaluate, predict
from objectives.evaluator import Evaluator
from objectives.objective import Objective
from objectives.pictures.digits import Digits
from objectives.pictures.sources import Files
from objectives.recipes.registry import evaluate_recipe
from objectives.runtime.distributed import ALONE, Group, join_group, leave_group
from objectives.runtime.seeding import seed_everything
from objectives.score import Score
from objectives.training.batch import labelled, taught
from objectives.training.config import FinetuneConfig
from objectives.training.finetune import finetune
from spaces.allocation import Allocation
from spaces.errors import ConfigError, DivergedError
from spaces.models.create import create_model, preprocessing

AS_THEY_ARE = replace(DATA, scale=(1.0, 1.0), eval_batch_size=32)
LOST = RuntimeError  # what gloo raises for a partner that is gone or silent


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    started = Pair()
    yield started
    started.close()


@pytest.fixture(scope="module")
def objective(tmp_path_factory: pytest.TempPathFactory) -> Objective:
    """Of a model that knows the digits, with its factors computed."""
    seed_everything(0)
    model = create_model(MODEL)
    config = FinetuneConfig(steps=300, lr=3e-3)
    for _ in finetune(model, labelled(Data(DATA, preprocessing(model, MODEL)).training(config.steps, 0)), config):
        pass
    short = FinetuneConfig(steps=60, lr=3e-3)
    evaluator = evaluator_of(model, tmp_path_factory.mktemp("runs"), data=DATA, finetune=short, rungs=(0.25, 0.5))
    _ = evaluator.dense.factors
    return evaluator.dense.objective


def smallest(evaluator: Evaluator) -> Allocation:
    return cut(evaluator.dense.space, lambda site: site.choices[0])


def model_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return create_model(MODEL)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_image_of_a_batch_belongs_to_one_process(split_folder: Path, size: int) -> None:
    """36 images in batches of 12: the order changes after three."""
    data = opened(split_folder, batch_size=12, scale=(1.0, 1.0), hflip=0.0)
    shares = [list(data.training(5, seed=0, group=Group(rank=rank, size=size))) for rank in range(size)]
    for batch, *parts in zip(data.training(5, seed=0), *shares, strict=True):
        assert [len(labels) for _, labels in parts] == [12 // size] * size
        assert sorted(numbers_of(parts)) == sorted(numbers_of([batch]))


def test_a_process_reads_its_own_images_alone(split_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, read = opened(split_folder, batch_size=12, eval_batch_size=1), list[int]()
    load = Files.read

    def noted(self: Any, index: int, reading: Any) -> Any:
        read.append(index)
        return load(self, index, reading)

    monkeypatch.setattr(Files, "read", noted)
    list(data.training(3, seed=0, group=group_of(1)))
    assert len(set(read)) == len(read) == 18
    read.clear()
    list(data.evaluation("search", group=group_of(1)))
    assert len(read) == 2, "of four"


def test_processes_vary_their_images_in_their_own_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    data = opened(None, GREY, dataset="digits", batch_size=16, aa="rand-m9-mstd0.5")
    first, again, other = (list(data.training(3, seed, group=group_of(1))) for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)
    assert same(data.training(3, 0, group=ALONE), data.training(3, 0))
    ramp = Image.linear_gradient("L").resize((8, 8))
    monkeypatch.setattr(Digits, "__getitem__", lambda self, index: (ramp, 0))
    shares = [list(data.training(3, 0, group=group_of(rank))) for rank in range(2)]
    assert not any(torch.equal(one, other) for (one, _), (other, _) in zip(*shares, strict=True))
    assert group_of(0).seed(5) == 5 != group_of(1).seed(5)


@pytest.mark.parametrize("most", [None, 100])
@pytest.mark.parametrize("size", [2, 5])
def test_processes_take_turns_at_the_batches_of_evaluation(size: int, most: int | None) -> None:
    """The 297 images make three batches of 128, and 100 of them make one; some processes have none of them."""
    data = opened(None, GREY, dataset="digits", eval_batch_size=128)
    batches = list(data.evaluation("search", most))
    shares = [list(data.evaluation("search", most, Group(rank=rank, size=size))) for rank in range(size)]
    assert sum(map(len, shares)) == len(batches)
    assert all(same([batch], [shares[turn % size][turn // size]]) for turn, batch in enumerate(batches))


def test_batches_must_be_shared_evenly(objective: Objective) -> None:
    assert group_of(0).divide(32) == 16
    with pytest.raises(ConfigError, match=r"batch_size must be a multiple of .* 2: 2, got 1"):
        group_of(0).divide(1)
    with pytest.raises(ConfigError, match=r"batch_size must be a multiple of .* 3: 30 or 33, got 32"):
        Evaluator(load_dense(objective), Group(rank=0, size=3))
    with pytest.raises(ConfigError, match="from 0 to 1 in a group of 2, got 2"):
        Group(rank=2, size=2)


def test_alone_nothing_is_distributed() -> None:
    model = model_of(0)
    assert join_group(0, 1, "nowhere", 0, torch.device("cpu")) == ALONE
    assert ALONE.wrap(model) is model
    assert (ALONE.total(1, 2.5), ALONE.mean(3.0), ALONE.agree(True), ALONE.agree(False)) == ([1, 2.5], 3.0, True, False)
    assert not torch.distributed.is_initialized()
    leave_group()


def test_a_recipe_is_made_by_the_first_process_alone(objective: Objective) -> None:
    """With no other there: it would wait for ever. On all images, though the group takes half of them each."""
    dense = load_dense(objective)
    lone, first = Evaluator(dense), Evaluator(dense, group_of(0))
    assert len(dense.answers) == 2
    scores = [evaluate_recipe(each, "vtp", limits_of(dense, macs=0.7), seed=0)[0] for each in (lone, first)]
    assert replace(scores[0], seconds=0.0) == replace(scores[1], seconds=0.0)
    assert first.group == group_of(0)


def train(group: Group) -> tuple[list[float], dict[str, Tensor]]:
    """A few steps on images as they are; every process begins with weights of its own."""
    model, teacher = model_of(group.rank), model_of(7).eval()
    config = FinetuneConfig(steps=6, lr=0.1, opt="momentum")
    batches = Data(AS_THEY_ARE, preprocessing(model, MODEL)).training(config.steps, 0, group=group)
    steps = finetune(model, taught(batches, teacher, config), config, group=group)
    return [step.loss for step in steps], model.state_dict()


@pytest.mark.slow
def test_two_processes_train_as_one(pair: Pair) -> None:
    losses, weights = train(ALONE)
    begun = model_of(0).state_dict()
    for found, ended in pair.run(train):
        assert found == pytest.approx(losses, rel=1e-5)
        assert list(ended) == list(weights)
        for name, weight in weights.items():
            assert torch.allclose(ended[name], weight, rtol=0, atol=1e-5), name
    assert float((weights["head.weight"] - begun["head.weight"]).abs().max()) > 1e-2


def measure(group: Group) -> Any:
    model, dense = model_of(0), model_of(1)
    data = Data(AS_THEY_ARE, preprocessing(model, MODEL))
    answers = predict(dense, data.evaluation("search", group=group))
    return evaluate(model, data.evaluation("search", group=group), answers, group=group)


@pytest.mark.slow
def test_two_processes_measure_as_one(pair: Pair) -> None:
    alone, (first, second) = measure(ALONE), pair.run(measure)
    assert first == second
    assert (first.error, first.count) == (alone.error, 297)
    assert first.kl == pytest.approx(alone.kl, abs=1e-6)


def diverge(group: Group, place: str) -> tuple[str, float, float]:
    """A NaN in the second process; what the error says, when it came, and whether the two still understand each other."""
    model, start = model_of(0), time.perf_counter()
    bad = torch.full((4, *SIZE), torch.nan if group.rank == 1 else 0.0), torch.zeros(4, dtype=torch.long)
    good = torch.zeros(4, *SIZE), bad[1]
    batches, config = [good, bad, good], FinetuneConfig(steps=3)

    def measured() -> Iterator[Evaluation]:
        yield evaluate(model, batches, group=group)

    with pytest.raises(DivergedError) as raised:
        list(finetune(model, labelled(batches), config, group=group) if place == "training" else measured())
    return str(raised.value), time.perf_counter() - start, group.total(1)[0]


@pytest.mark.slow
@pytest.mark.parametrize(("place", "message"), [("training", "nan at step 2 of 3"), ("evaluation", "outputs are not finite")])
def test_all_learn_that_one_has_diverged(pair: Pair, place: str, message: str) -> None:
    for said, seconds, counted in pair.run(diverge, place):
        assert message in said
        assert seconds < 30, "a silent partner is waited for a minute"
        assert counted == 2


def score(group: Group, objective: Objective, seeds: list[int], weights: Path | None = None) -> list[Score]:
    evaluator = Evaluator(load_dense(objective), group)
    return [evaluator.evaluate(smallest(evaluator), seed, weights=weights) for seed in seeds]


@pytest.mark.slow
def test_a_candidate_of_two_processes_scores_as_that_of_one(pair: Pair, objective: Objective, tmp_path: Path) -> None:
    """Other random crops: the same error within what the seed alone changes; the same figures where nothing is random."""
    seeds = [0, 1, 2]
    alone, (first, second) = score(ALONE, objective, seeds), pair.run(score, objective, seeds, tmp_path / "weights")
    for one, two, other in zip(alone, first, second, strict=True):
        assert replace(two, seconds=0.0) == replace(other, seconds=0.0)
        assert (two.error_before, two.costs, two.steps) == (one.error_before, one.costs, one.steps)
        assert two.kl_before == pytest.approx(one.kl_before, abs=1e-6)
    errors = [torch.tensor([entry.error for entry in run]) for run in (alone, first)]
    assert float(errors[0].mean()) < alone[0].error_before - 0.05
    assert float(errors[1].mean()) == pytest.approx(float(errors[0].mean()), abs=0.03)
    evaluator = Evaluator(load_dense(objective))
    model = evaluator.build(smallest(evaluator))
    model.load_state_dict(load_file(tmp_path / "weights"))
    images, labels = whole_split(evaluator.dense.data, "search")
    assert evaluate(model, [(images, labels)]).error == pytest.approx(first[-1].error)


def climb(group: Group, objective: Objective, folder: Path) -> tuple[Score, list[int], list[int], list[str]]:
    """The first process stops at its second rung; the second would stop at once."""
    evaluator, steps, asked = Evaluator(load_dense(objective), group), [], []

    def on_rung(step: int, error: float) -> bool:
        asked.append(step)
        return group.rank == 1 or len(asked) == 2

    folder = folder / str(group.rank)
    found = evaluator.evaluate(smallest(evaluator), 0, lambda step: steps.append(step.step), folder / "stopped", on_rung)
    evaluator.evaluate(smallest(evaluator), 0, weights=folder / "weights")
    return found, steps, asked, [path.name for path in folder.glob("*")]


@pytest.mark.slow
def test_the_first_process_decides_and_writes(pair: Pair, objective: Objective, tmp_path: Path) -> None:
    (score, *first), (other, *second) = pair.run(climb, objective, tmp_path)
    assert first == [list(range(1, 31)), [15, 30], ["weights"]]
    assert second == [[], [], []]
    assert (score.error, score.steps, list(score.rungs)) == (None, 30, [15, 30])
    assert replace(score, seconds=0.0) == replace(other, seconds=0.0)


def abandon(group: Group, how: str, wait: float) -> float:
    """The second process dies or stays away in its second step; how long the first waits for it."""
    config, batch = FinetuneConfig(steps=3), (torch.zeros(4, *SIZE), torch.zeros(4, dtype=torch.long))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield batch
        if group.rank == 1 and how == "die":
            os._exit(1)
        if group.rank == 1:
            time.sleep(wait)
        yield from (batch, batch)

    start = time.perf_counter()
    with pytest.raises(LOST):
        list(finetune(model_of(0), labelled(batches()), config, group=group))
    return time.perf_counter() - start


@pytest.mark.slow
@pytest.mark.parametrize(("how", "timeout", "bounds"), [("sleep", 2, (1.5, 8)), ("die", 60, (0, 45))])
def test_a_partner_that_is_gone_is_not_waited_for(pair: Pair, how: str, timeout: float, bounds: tuple[float, float]) -> None:
    first, second = pair.run(abandon, how, 8.0, timeout=timeout)
    assert bounds[0] < first < bounds[1]
    assert (second is None) == (how == "die")
    assert pair.run(speak) == [[[3.0, 30.0], 1.5, True, False]] * 2, "they meet again"


def speak(group: Group) -> list[object]:
    """What two processes agree on, whose numbers are 1 and 2."""
    number = group.rank + 1.0
    return [group.total(number, 10 * number), group.mean(number), group.agree(number == 1), group.agree(number == 2)]
