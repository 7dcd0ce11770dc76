"""A fine-tune that is killed after a rung goes on from there, and ends as one that was not."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from local_digits import DATA, MODEL, evaluator_of
from local_vits import cut
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.optim import create_optimizer_v2
from torch import nn

from objectives.dense_model import load_dense
from objectives.error import Evaluation
from objectives.evaluator import Evaluator
from objectives.runtime.progress import Step
from objectives.score import Score
from objectives.training.checkpoint import Checkpoint, Passed
from objectives.training.config import FinetuneConfig
from objectives.training.kept import Best
from spaces.allocation import Allocation
from spaces.errors import DivergedError
from spaces.models.create import create_model


class Killed(BaseException):
    """As a signal ends a process: nothing may handle it."""


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    """With dropout and drop path, so that training draws random numbers; rungs after 3 and 6 of 9 steps."""
    torch.manual_seed(0)
    kwargs = {**MODEL.model_kwargs, "proj_drop_rate": 0.1, "drop_path_rate": 0.1}
    folder = tmp_path_factory.mktemp("runs")
    data = replace(DATA, calibration_size=64, crop_padding=1, hflip=0.5)
    prepared = evaluator_of(
        create_model(MODEL), folder, data=data, finetune=FinetuneConfig(steps=9, lr=5e-4), rungs=(1 / 3, 2 / 3)
    )
    model = replace(prepared.dense.objective.model, model_kwargs=kwargs)
    return Evaluator(load_dense(replace(prepared.dense.objective, model=model)))


def half(evaluator: Evaluator) -> Allocation:
    return cut(evaluator.dense.space, lambda site: site.choices[len(site.choices) // 2])


class Watched:
    """An evaluation that notes its steps and rungs, and is killed after the step `end`."""

    def __init__(self, evaluator: Evaluator, folder: Path, end: int = 0, **options: Any) -> None:
        self.steps: list[Step] = []
        self.rungs: list[int] = []
        self._evaluator, self._end, self._folder = evaluator, end, folder
        self._options = {"seed": 0, "checkpoint": folder / "state", "allocation": half(evaluator), **options}

    def run(self) -> Score:
        return self._evaluator.evaluate(
            on_step=self._on_step, on_rung=self._on_rung, weights=self._folder / "weights", **self._options
        )

    def killed(self) -> "Watched":
        with pytest.raises(Killed):
            self.run()
        return self

    def _on_step(self, step: Step) -> None:
        self.steps.append(step)
        if step.step == self._end:
            raise Killed

    def _on_rung(self, step: int, error: float) -> bool:
        self.rungs.append(step)
        return False


def outcome(score: Score) -> Score:
    return replace(score, seconds=0)


@pytest.mark.parametrize(("end", "left"), [(5, [4, 5, 6, 7, 8, 9]), (8, [7, 8, 9]), (2, [1, 2, 3, 4, 5, 6, 7, 8, 9])])
def test_it_ends_as_one_that_was_not_killed(evaluator: Evaluator, tmp_path: Path, end: int, left: list[int]) -> None:
    whole = Watched(evaluator, tmp_path / "whole", checkpoint=None)
    expected = whole.run()
    Watched(evaluator, tmp_path / "killed", end).killed()
    torch.manual_seed(99)
    again = Watched(Evaluator(evaluator.dense), tmp_path / "killed")
    found = again.run()
    assert outcome(found) == outcome(expected)
    assert [step.step for step in again.steps] == left
    assert again.steps == whole.steps[-len(left) :]
    assert again.rungs == [rung for rung in (3, 6) if rung in left]
    assert list(found.rungs) == [3, 6]
    assert (tmp_path / "killed" / "weights").read_bytes() == (tmp_path / "whole" / "weights").read_bytes()
    assert not (tmp_path / "killed" / "state").exists()


def test_saving_changes_nothing(evaluator: Evaluator, tmp_path: Path) -> None:
    plain = Watched(evaluator, tmp_path / "plain", checkpoint=None).run()
    saved = Watched(evaluator, tmp_path / "saved").run()
    assert outcome(plain) == outcome(saved)
    assert (tmp_path / "plain" / "weights").read_bytes() == (tmp_path / "saved" / "weights").read_bytes()
    assert [path.name for path in (tmp_path / "saved").iterdir()] == ["weights"]


def test_killed_twice(evaluator: Evaluator, tmp_path: Path) -> None:
    expected = Watched(evaluator, tmp_path / "whole").run()
    Watched(evaluator, tmp_path, 4).killed()
    assert [step.step for step in Watched(evaluator, tmp_path, 8).killed().steps] == [4, 5, 6, 7, 8]
    last = Watched(evaluator, tmp_path)
    assert outcome(last.run()) == outcome(expected)
    assert [step.step for step in last.steps] == [7, 8, 9]


def test_time_goes_on_too(evaluator: Evaluator, tmp_path: Path) -> None:
    Watched(evaluator, tmp_path, 4).killed()
    with safe_open(tmp_path / "state", framework="pt") as file:
        metadata = file.metadata()
    passed = json.loads(metadata["note"])
    assert passed["seconds"] > 0
    metadata["note"] = json.dumps({**passed, "seconds": 1000})
    save_file(load_file(tmp_path / "state"), tmp_path / "state", metadata)
    assert 1000 < Watched(evaluator, tmp_path).run().seconds < 1100


@pytest.mark.parametrize("change", ["seed", "allocation", "finetune", "data"])
def test_the_state_of_another_candidate_is_not_taken(evaluator: Evaluator, tmp_path: Path, change: str) -> None:
    Watched(evaluator, tmp_path, 4).killed()
    objective, options = evaluator.dense.objective, dict[str, Any]()
    if change == "seed":
        options["seed"] = 1
    elif change == "allocation":
        options["allocation"] = evaluator.dense.space.identity()
    elif change == "finetune":
        objective = replace(objective, finetune=replace(objective.finetune, lr=1e-3))
    else:
        objective = replace(objective, data=replace(objective.data, batch_size=16))
    again = Watched(Evaluator(load_dense(objective)), tmp_path, 2, **options).killed()
    assert [step.step for step in again.steps] == [1, 2]
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "foreign"])
def test_a_damaged_file_is_removed(evaluator: Evaluator, tmp_path: Path, damage: str) -> None:
    Watched(evaluator, tmp_path, 4).killed()
    path = tmp_path / "state"
    content = path.read_bytes()
    if damage == "foreign":
        save_file({"a": torch.zeros(1)}, path)
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "noise": b"\x80" * 100, "empty": b""}[damage])
    again = Watched(evaluator, tmp_path, 2).killed()
    assert [step.step for step in again.steps] == [1, 2]
    assert not path.exists()


def test_stopped_or_diverged_leaves_no_file(evaluator: Evaluator, tmp_path: Path) -> None:
    path = tmp_path / "state"
    score = evaluator.evaluate(half(evaluator), 0, on_rung=lambda step, error: step == 6, checkpoint=path)
    assert (score.error, score.steps) == (None, 6)
    assert not path.exists()

    def diverge(step: Step) -> None:
        if step.step == 5:
            assert path.exists()
            raise DivergedError

    with pytest.raises(DivergedError):
        evaluator.evaluate(half(evaluator), 0, diverge, on_rung=lambda step, error: False, checkpoint=path)
    assert not path.exists()


def test_out_of_memory_after_a_rung_goes_on_in_parts(evaluator: Evaluator, tmp_path: Path) -> None:
    """What was split stays split where it is resumed."""
    seen: list[int] = []

    def on_step(step: Step) -> None:
        seen.append(step.step)
        if len(seen) == 5:
            raise torch.OutOfMemoryError
        if seen[5:] == [4, 5, 6, 7]:
            raise Killed

    with pytest.raises(Killed):
        evaluator.evaluate(half(evaluator), 0, on_step, on_rung=lambda step, error: False, checkpoint=tmp_path / "state")
    assert seen == [1, 2, 3, 4, 5, 4, 5, 6, 7]
    again = Watched(evaluator, tmp_path)
    assert again.run().parts == 2
    assert [step.step for step in again.steps] == [7, 8, 9]


PASSED = Passed(
    before=Evaluation(error=0.9, kl=0.1 + 0.2, count=7),
    best=Best(step=1, loss=0.1 + 0.2),
    step=2,
    rungs={1: 0.1, 2: 1 / 3},
    parts=2,
)


@pytest.mark.parametrize("opt", ["adamw", "nadamw", "sgd", "lion", "adafactor", "lamb", "muon", "lookahead_adamw"])
def test_the_state_of_every_optimizer_is_kept(tmp_path: Path, opt: str) -> None:
    """What follows is the same to the bit; loss scaling and all else that was noted comes back as it was."""

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            loss = model(torch.randn(5, 4)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def made() -> tuple[nn.Module, torch.optim.Optimizer, torch.amp.GradScaler]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Dropout(0.3), nn.Linear(4, 2))
        optimizer = create_optimizer_v2(model, opt=opt, lr=0.01, weight_decay=0.05)
        return model, optimizer, torch.amp.GradScaler("cpu")

    first, (model, optimizer, scaler) = Checkpoint(tmp_path / "state", opt), made()
    assert first.resume(model, optimizer, scaler) == 0
    train(model, optimizer, 7)
    scaler.load_state_dict({**scaler.state_dict(), "scale": 1024.0, "_growth_tracker": 5})
    first.save(PASSED, {"weight": torch.arange(3)})
    train(model, optimizer, 3)
    second, (resumed, other, scaling) = Checkpoint(tmp_path / "state", opt), made()
    assert second.passed is not None
    assert asdict(replace(second.passed, seconds=0)) == asdict(PASSED)
    assert second.resume(resumed, other, scaling) == 2
    assert torch.equal((second.best() or {})["weight"], torch.arange(3))
    assert (scaling.get_scale(), scaling._get_growth_tracker()) == (1024.0, 5)
    train(resumed, other, 3)
    for one, its in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, its)


def test_an_optimizer_that_notes_functions_is_not_kept(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["when"] = lambda step: 0.5
    state = Checkpoint(tmp_path / "state")
    state.resume(model, optimizer, torch.amp.GradScaler("cpu"))
    state.save(PASSED, {})
    assert list(tmp_path.iterdir()) == []
    assert state.passed is None
