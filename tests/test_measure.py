"""A folder's model is timed beside the dense architecture that it was made from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from local_runs import Fails
from torch import nn

from objectives import measure as module
from objectives.latency import Call, Setting, Timing
from objectives.measure import Comparison, measure, rows_of
from spaces.allocation import Allocation
from spaces.compressed import save_compressed
from spaces.vit import describe, resize

CPU = torch.device("cpu")


@pytest.fixture
def folder(vit: nn.Module, make_vit: Any, tmp_path: Path) -> Path:
    """Of a model whose FFNs keep their smallest width."""
    model = make_vit()
    space = describe(model, "contract", 8)
    smallest = {site.name: site.choices[0] for site in space.sites if site.kind == "ffn_hidden"}
    allocation = space.identity().replace(smallest)
    resize(model, space, Allocation(dict(allocation)))
    save_compressed(tmp_path, model, {
        "architecture": "vit_tiny_patch16_224",
        "model_args": {key: value for key, value in TINY.items() if key != "num_classes"},
        "num_classes": TINY["num_classes"],
        "space": "contract",
        "multiple": 8,
        "allocation": dict(allocation),
        "pretrained_cfg": {},
    })  # fmt: skip
    return tmp_path


def test_both_models_are_timed_in_every_setting(folder: Path, vit: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time that is a model's number of parameters, and the batch that it is given."""
    sizes: list[int] = []

    def forward(model: nn.Module, images: torch.Tensor, setting: Setting) -> Call:
        assert images.shape == (setting.batch_size, 3, TINY["img_size"], TINY["img_size"])
        sizes.append(sum(parameter.numel() for parameter in model.parameters()))
        return lambda: model(images)

    monkeypatch.setattr(module, "forward", forward)
    found = measure(folder, CPU, batch_sizes=(1, 3), compiled=False, seconds=0.0)
    texts = ["batch 1, fp32, eager", "batch 1, AMP, eager", "batch 3, fp32, eager", "batch 3, AMP, eager"]
    assert [entry.setting.text for entry in found] == texts
    assert all(entry.dense and entry.compressed and not entry.reason for entry in found)
    dense = sum(parameter.numel() for parameter in vit.parameters())
    hidden = 4 * TINY["embed_dim"]
    assert sizes[::2] == [dense] * 4
    # Two FFNs of 8 neurons in place of 128: a row of the first layer, a column of the second and a bias for each.
    assert sizes[1::2] == [dense - 2 * (hidden - 8) * (2 * TINY["embed_dim"] + 1)] * 4


def test_a_way_that_is_not_to_be_had_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(model: nn.Module, images: torch.Tensor, setting: Setting) -> Call:
        def fails() -> object:
            raise RuntimeError("no compiler\nand a long trace")

        return fails if setting.compiled else lambda: None

    monkeypatch.setattr(module, "forward", forward)
    found = measure(folder, CPU, batch_sizes=(1,), compiled=True, seconds=0.0)
    assert [bool(entry.reason) for entry in found] == [False, False, True, True]
    assert [row[1] for row in rows_of(found)][2:] == ["not available: no compiler"] * 2
    assert found[2].plain() == {
        "setting": "batch 1, fp32, compiled", "dense": None, "compressed": None, "ratio": None, "reason": "no compiler",
    }  # fmt: skip


def test_ratios_are_shown_with_their_quartiles() -> None:
    dense, compressed = Timing((0.01, 0.02, 0.04)), Timing((0.005, 0.01, 0.03))
    entry = Comparison(setting=Setting(), dense=dense, compressed=compressed)
    assert next(rows_of([entry])) == (
        "batch 1, fp32, eager", "20 ms (15–30)", "10 ms (7.5–20)", "×0.50 (0.50–0.62)",
    )  # fmt: skip
    assert entry.plain()["ratio"] == [0.5, 0.5, 0.625]


def test_no_folder_and_no_batch_are_one_line(folder: Path, tmp_path: Path, fails: Fails) -> None:
    assert "cannot be read" in fails("measure", tmp_path / "nothing")
    assert "at least 1, got 0" in fails("measure", folder, "--batch-sizes", "0", "--no-compile")
