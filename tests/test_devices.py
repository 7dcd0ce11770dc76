"""What must hold on every device: on the CPU here, and on a GPU where there is one (`make gpu`)."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from local_digits import limits_of
from torch import nn

from objectives.dense_model import load_dense
from objectives.evaluator import Evaluator
from objectives.runtime.distributed import (
    ALONE,
    Group,
    connect,
    free_port,
    leave_group,
    share_gradients,
    sum_over_processes,
)
from objectives.runtime.out_of_memory import within_memory
from objectives.training.finetune import finetune

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
on_both = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
STEPS = 5


@pytest.fixture
def loaded(evaluator: Evaluator, tmp_path: Path) -> Callable[..., Evaluator]:
    """The evaluator of the recipes' tests, loaded anew on a device with other options of the fine-tune."""

    def load(device: str, folder: str = "one", **options: object) -> Evaluator:
        objective = evaluator.dense.objective
        config = replace(objective.finetune, steps=STEPS, **options)  # type: ignore[arg-type]
        factors = tmp_path / folder / "factors"
        return Evaluator(load_dense(replace(objective, device=device, finetune=config, factors=factors)))

    return load


class Connected(Group):
    """A group of one that goes the way of larger ones."""

    def wrap(self, model: nn.Module) -> nn.Module:
        return share_gradients(model)

    def total(self, *values: float) -> list[float]:
        return sum_over_processes(values)


@pytest.fixture
def connected() -> Iterator[Callable[[str], Group]]:
    def begin(device: str) -> Group:
        connect(0, 1, "127.0.0.1", free_port(), torch.device(device))
        return Connected()

    yield begin
    leave_group()


@on_both
def test_batches_that_are_kept_are_those_that_are_made(loaded: Callable[..., Evaluator], device: str) -> None:
    dense = loaded(device).dense
    made = list(dense.batches.training(STEPS, seed=0))
    dense.keep_training(seed=0)
    kept = list(dense.batches.training(STEPS, seed=0))
    assert len(kept) == len(made) == STEPS
    for before, after in zip(made, kept, strict=True):
        assert before.soft is not None and after.soft is not None
        assert {tensor.device.type for tensor in (after.images, after.labels, after.soft)} == {device}
        torch.testing.assert_close(after.images, before.images)
        torch.testing.assert_close(after.labels, before.labels)
        torch.testing.assert_close(after.soft, before.soft, rtol=0.02, atol=0.02)


@on_both
def test_search_images_that_are_kept_are_those_that_are_read(loaded: Callable[..., Evaluator], device: str) -> None:
    dense = loaded(device).dense
    read = list(dense.batches.search())
    dense.keep_search()
    for (images, labels), (kept, their) in zip(read, dense.batches.search(), strict=True):
        assert kept.device.type == device
        torch.testing.assert_close(kept, images)
        torch.testing.assert_close(their, labels)


@on_both
def test_mixed_precision_trains_nearly_as_float32_does(loaded: Callable[..., Evaluator], device: str) -> None:
    """Half of the MACs, five steps: the divergence from the dense model within a tenth."""
    found = {}
    for amp in ("off", "on"):
        entry = loaded(device, amp, amp=amp)
        load = partial(entry.dense.costs.load, limits=limits_of(entry.dense, macs=0.5))
        found[amp] = entry.probe(entry.dense.space.decode(1.0, load), lr=5e-4, steps=5)
    assert found["on"] != found["off"]
    assert found["on"] == pytest.approx(found["off"], rel=0.1)


@on_both
def test_a_group_of_one_that_shares_gradients_trains_as_one_alone(
    loaded: Callable[..., Evaluator], connected: Callable[[str], Group], device: str
) -> None:
    """Through gloo on the CPU, through NCCL on a GPU."""
    entry, losses = loaded(device, amp="off"), []
    group = connected(device)
    for which in (ALONE, group):
        torch.manual_seed(0)
        model = entry.build(entry.dense.space.identity()).to(entry.dense.device)
        steps = finetune(model, entry.dense.batches.training(STEPS, seed=0), entry.dense.objective.finetune, group=which)
        losses.append([step.loss for step in steps])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert group.mean(3.0) == 3.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_card_that_is_full_is_met_with_halves() -> None:
    """The whole is more than there is, a half is less."""
    free, _ = torch.cuda.mem_get_info()
    asked: list[int] = []

    def attempt(parts: int) -> int:
        asked.append(parts)
        return torch.empty(int(1.2 * free) // parts, dtype=torch.uint8, device="cuda").numel()

    assert within_memory(attempt) == int(1.2 * free) // 2
    assert asked == [1, 2]
    torch.cuda.empty_cache()
