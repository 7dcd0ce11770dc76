"""The figure of the dense model after the fine-tune is kept for the images and the training that it is of."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from objectives.evaluator import Evaluator
from objectives.training.config import FinetuneConfig
from search.deploy.reference import REFERENCE, read_reference, reference_mark, write_reference
from spaces.errors import RunError


def test_it_is_that_of_the_same_mark(tmp_path: Path) -> None:
    assert read_reference(tmp_path, "one") is None
    one = np.arange(20) % 7 == 0
    write_reference(tmp_path, "one", one)
    assert json.loads((tmp_path / REFERENCE).read_text())["test_top1"] == pytest.approx(0.85)
    found = read_reference(tmp_path, "one")
    assert found is not None
    assert found.tolist() == one.tolist()
    assert read_reference(tmp_path, "two") is None
    write_reference(tmp_path, "two", ~one)
    assert read_reference(tmp_path, "one") is None


def test_a_mark_is_of_all_that_changes_the_figure(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    before = evaluator.dense.objective
    others = {
        "seed": reference_mark(evaluator.dense, 1),
        "again": reference_mark(evaluator.dense, 0),
    }
    for name, changed in {
        "steps": replace(before, finetune=FinetuneConfig(steps=6)),
        "images": replace(before, data=replace(before.data, data_dir="elsewhere")),
        "how it runs": replace(before, data=replace(before.data, workers=7, eval_batch_size=3), device="elsewhere"),
    }.items():
        monkeypatch.setattr(evaluator.dense, "objective", changed)
        others[name] = reference_mark(evaluator.dense, 0)
    assert others["again"] == others["how it runs"]
    assert len(set(others.values())) == len(others) - 1


def test_a_file_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    damaged = json.dumps({"mark": "one", "test_top1": 0.5, "images": 20, "wrong": "!"})
    for text in ("{", "[" * 10_000, damaged, damaged.replace("!", "")):
        (tmp_path / REFERENCE).write_text(text)
        with pytest.raises(RunError, match=r"reference\.json cannot be read .*: delete it"):
            read_reference(tmp_path, "one")
    (tmp_path / "file").touch()
    write_reference(tmp_path / "file", "one", np.zeros(2, dtype=bool))  # a run that nobody may write to is exported too
