"""A candidate that runs out of memory is measured with batches in two parts."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from local_digits import DATA, MODEL, evaluator_of, limits_of
from torch import Tensor, nn

from objectives.data.loaders import Data
from objectives.dense_model import load_dense
from objectives.error import evaluate, predict
from objectives.evaluator import Evaluator
from objectives.recipes.registry import evaluate_recipe
from objectives.runtime.out_of_memory import is_out_of_memory, within_memory
from objectives.training.batch import taught
from objectives.training.config import FinetuneConfig
from objectives.training.finetune import finetune
from spaces.errors import DivergedError
from spaces.models.create import create_model, preprocessing


def failure(size: int) -> RuntimeError:
    try:
        torch.empty(size)
    except RuntimeError as error:
        return error
    raise AssertionError("there is no such memory")


def test_which_errors_say_so() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(failure(10**15))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB)"))
    for error in (RuntimeError("size mismatch"), DivergedError("memory"), ValueError("out of memory"), KeyboardInterrupt()):
        assert not is_out_of_memory(error)


def test_what_was_held_is_freed_before_the_second_attempt() -> None:
    held: list[weakref.ref[nn.Module]] = []

    def attempt(parts: int) -> int:
        if parts == 2:
            assert held[0]() is None
            return parts
        model = nn.Linear(2, 2)
        model.itself = model
        held.append(weakref.ref(model))
        raise torch.OutOfMemoryError

    gc.disable()
    try:
        assert within_memory(attempt) == 2
    finally:
        gc.enable()


def test_another_error_is_no_reason_to_try_again() -> None:
    tried: list[int] = []

    def attempt(parts: int) -> None:
        tried.append(parts)
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        within_memory(attempt)
    assert tried == [1]


# Training in parts


def gradients(parts: int, batch: int = 24) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the first step, unclipped, with soft labels and a penalty."""
    torch.manual_seed(0)
    teacher, model = create_model(MODEL), create_model(MODEL)
    data = Data(DATA, preprocessing(model, MODEL))
    config = FinetuneConfig(steps=1, opt="sgd", clip_grad=1e9, lr=1.0, weight_decay=0.0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    weight = model.get_parameter("head.weight")
    batches = taught(data.training(1, 0, batch), teacher, config, parts)
    steps = finetune(model, batches, config, lambda: weight.square().sum(), parts)
    (step,) = steps
    return step.loss, {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("parts", "batch"), [(2, 24), (2, 25), (5, 24)])
def test_parts_make_the_same_step(parts: int, batch: int) -> None:
    """A batch that cannot be halved too."""
    loss, whole = gradients(1, batch)
    found, accumulated = gradients(parts, batch)
    assert found == pytest.approx(loss, rel=1e-5)
    assert whole.keys() == accumulated.keys()
    for name, gradient in whole.items():
        assert torch.allclose(accumulated[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()) + 1e-8), name
    assert max(float(gradient.abs().max()) for gradient in whole.values()) > 1e-3


def test_parts_make_the_same_evaluation() -> None:
    torch.manual_seed(0)
    dense, model = create_model(MODEL), create_model(MODEL)
    data = Data(DATA, preprocessing(model, MODEL))
    answers, in_parts = (predict(dense, data.evaluation("search"), parts) for parts in (1, 2))
    assert [len(batch) for batch in in_parts] == [256, 41]
    for one, other in zip(answers, in_parts, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    whole, halves = (evaluate(model, data.evaluation("search"), answers, parts) for parts in (1, 2))
    assert (whole.error, whole.count) == (halves.error, halves.count)
    assert whole.kl == pytest.approx(halves.kl, rel=1e-4)


# Candidates


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    torch.manual_seed(0)
    data = replace(DATA, eval_batch_size=32, calibration_size=64)
    return evaluator_of(create_model(MODEL), tmp_path_factory.mktemp("runs"), data=data, finetune=FinetuneConfig(steps=4))


@contextmanager
def memory_for(evaluator: Evaluator, images: int) -> Iterator[list[int]]:
    """Have the model and all that is made of it run out of memory above so many images; the numbers that came."""
    seen: list[int] = []

    def check(module: nn.Module, arguments: tuple[Tensor]) -> None:
        seen.append(len(arguments[0]))
        if seen[-1] > images:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {seen[-1]} images")

    layer = evaluator.dense.model.get_submodule("patch_embed")
    handle = layer.register_forward_pre_hook(check)
    try:
        yield seen
    finally:
        handle.remove()


def test_a_candidate_that_does_not_fit_is_measured_in_halves(prepared: Evaluator) -> None:
    identity = prepared.dense.space.identity()
    whole = prepared.evaluate(identity, seed=0)
    numbers: list[int] = []
    fresh = Evaluator(load_dense(prepared.dense.objective))
    for path in prepared.dense.objective.factors.glob("*.answers.safetensors"):
        path.unlink()  # the dense model does not fit either
    with memory_for(fresh, 16) as seen:
        halves = fresh.evaluate(identity, seed=0, on_step=lambda step: numbers.append(step.step))
    assert (whole.parts, halves.parts) == (1, 2)
    assert max(seen[2:]) == 32, "the candidate was tried whole"
    assert numbers == [1, 2, 3, 4]
    assert halves.error == whole.error
    assert halves.kl == pytest.approx(whole.kl, rel=1e-2)
    assert halves.kl_before == pytest.approx(0, abs=1e-6)
    assert (halves.steps, halves.costs["macs"]) == (whole.steps, whole.costs["macs"])


def test_out_of_memory_in_the_middle_of_training_begins_anew(prepared: Evaluator) -> None:
    numbers: list[int] = []

    def on_step(step: object) -> None:
        numbers.append(step.step)  # type: ignore[attr-defined]
        if numbers == [1, 2]:
            raise torch.OutOfMemoryError

    identity = prepared.dense.space.identity()
    with memory_for(prepared, 16):
        expected = prepared.evaluate(identity, seed=0)
    found = prepared.evaluate(identity, seed=0, on_step=on_step)
    assert numbers == [1, 2, 1, 2, 3, 4]
    assert replace(found, seconds=0) == replace(expected, seconds=0)


def test_a_second_time_is_raised(prepared: Evaluator) -> None:
    with memory_for(prepared, 15), pytest.raises(torch.OutOfMemoryError, match="16 images"):
        prepared.evaluate(prepared.dense.space.identity(), seed=0)


@pytest.mark.parametrize("name", ["vtp", "magnitude"])
def test_a_recipe_is_measured_in_halves(evaluator: Evaluator, name: str) -> None:
    """Before its cut and after it."""
    objective = evaluator.dense.objective
    small = Evaluator(load_dense(replace(objective, data=replace(objective.data, eval_batch_size=16))))
    _ = small.dense.factors_of(small.dense.space)
    limits, numbers = limits_of(small.dense, macs=0.6), list[int]()
    whole, allocation = evaluate_recipe(small, name, limits, seed=0)
    with memory_for(small, 15) as seen:
        halves, found = evaluate_recipe(small, name, limits, seed=0, on_step=lambda step: numbers.append(step.step))
    assert (whole.parts, halves.parts) == (1, 2)
    assert 16 in seen
    assert found == allocation
    assert numbers == [1, 2, 3, 4, 5] if name == "magnitude" else numbers[-1] == 5
    assert halves.error == pytest.approx(whole.error, abs=0.02)
