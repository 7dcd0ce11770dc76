"""What a trial will take, by a clock that counts images."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from local_digits import DATA, MODEL, evaluator_of
from local_vits import cut
from torch import Tensor, nn

from objectives import forecast as forecast_module
from objectives.dense_model import load_dense
from objectives.evaluator import Evaluator
from objectives.forecast import forecast
from objectives.training.config import FinetuneConfig
from spaces.allocation import Allocation
from spaces.models.create import create_model


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    torch.manual_seed(0)
    model = replace(MODEL, model_kwargs={**MODEL.model_kwargs, "proj_drop_rate": 0.1})
    finetune, folder = FinetuneConfig(steps=9), tmp_path_factory.mktemp("runs")
    prepared = evaluator_of(create_model(MODEL), folder, data=DATA, finetune=finetune, rungs=(1 / 3, 2 / 3))
    objective = prepared.dense.objective
    return Evaluator(load_dense(replace(objective, model=replace(model, checkpoint=objective.model.checkpoint))))


def half(evaluator: Evaluator) -> Allocation:
    return cut(evaluator.dense.space, lambda site: site.choices[len(site.choices) // 2])


class Clock:
    """A second for every image that enters the dense model or what is made of it; three for every candidate that is built."""

    def __init__(self, evaluator: Evaluator, most: int = 10**9) -> None:
        self.seconds, self._evaluator, self._most = 0.0, evaluator, most

    def __call__(self) -> float:
        return self.seconds

    @contextmanager
    def running(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        build = self._evaluator.build

        def built(allocation: Allocation) -> nn.Module:
            self.seconds += 3
            return build(allocation)

        def passed(module: nn.Module, arguments: tuple[Tensor]) -> None:
            self.seconds += len(arguments[0])
            if len(arguments[0]) > self._most:
                raise torch.OutOfMemoryError

        handle = self._evaluator.dense.model.get_submodule("patch_embed").register_forward_pre_hook(passed)
        monkeypatch.setattr(self._evaluator, "build", built)
        try:
            yield
        finally:
            handle.remove()
            monkeypatch.undo()


@pytest.mark.parametrize(("steps", "before", "evaluated"), [(9, False, 356), (40, False, 356), (40, True, 297), (0, False, 0)])
def test_by_hand(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch, steps: int, before: bool, evaluated: int) -> None:
    """32 images a step, through the candidate and the dense model; 297 images to search on, at each of two rungs 100.

    As built on the 256 of the profile and on the 100 of a rung.
    """
    finetune = FinetuneConfig(steps=steps)
    timed = Evaluator(load_dense(replace(evaluator.dense.objective, finetune=finetune, measure_before=before)))
    clock = Clock(timed)
    monkeypatch.setattr(forecast_module, "RUNG_IMAGES", 100)
    with monkeypatch.context() as patch, clock.running(patch):
        found = forecast(timed, timed.dense.space.identity(), clock)
    assert (found.build, found.step, found.evaluation, found.parts) == (3, 64, 297, 1)
    assert found.seconds == pytest.approx(3 + steps * 64 + evaluated + 297 + (2 * 100 if steps else 0))


def test_a_candidate_in_parts_and_its_weights(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Evaluator(load_dense(replace(evaluator.dense.objective, data=replace(DATA, eval_batch_size=32))))
    _ = small.dense.factors
    clock = Clock(small, most=16)
    with monkeypatch.context() as patch, clock.running(patch):
        found = forecast(small, half(small), clock)
    assert found.parts == 2
    assert found.weights == 4 * small.dense.costs.costs(half(small))["params"]


def test_it_leaves_no_trace(evaluator: Evaluator, tmp_path: Path) -> None:
    plain = evaluator.evaluate(half(evaluator), 0, weights=tmp_path / "plain")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fresh = Evaluator(load_dense(evaluator.dense.objective))
    torch.manual_seed(5)
    found = forecast(fresh, half(fresh))
    assert torch.equal(torch.rand(3), expected), "dropouts draw random numbers"
    after = fresh.evaluate(half(fresh), 0, weights=tmp_path / "after")
    assert (tmp_path / "after").read_bytes() == (tmp_path / "plain").read_bytes()
    assert replace(after, seconds=0) == replace(plain, seconds=0)
    assert 0 < found.step < found.seconds
    assert 0 < found.build < found.seconds
