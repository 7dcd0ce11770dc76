"""A folder's model is timed beside the dense architecture that it was made from."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from local_folders import Folder, changed, write_folder
from local_runs import Fails
from local_vits import MakeVit, parameters
from torch import Tensor, nn

from objectives.deploy import compare_latency as module
from objectives.deploy.compare_latency import Comparison, measure, rows_of
from objectives.deploy.formats import open_format
from objectives.latency.config import Setting
from objectives.latency.timing import Call, Timing
from spaces.errors import CheckpointError
from spaces.folder.description import fingerprint_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(make_vit: MakeVit, images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return write_folder(tmp_path_factory.mktemp("measure") / "exported", make_vit, images)


def test_both_models_are_timed_in_every_setting(folder: Folder, vit: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def forward(model: nn.Module, images: torch.Tensor, setting: Setting) -> Call:
        assert images.shape == (setting.batch_size, 3, TINY["img_size"], TINY["img_size"])
        sizes.append(parameters(model))
        return lambda: model(images)

    monkeypatch.setattr(module, "forward", forward)
    found = measure(folder.path, CPU, batch_sizes=(1, 3), compiled=False, seconds=0.0)
    texts = ["batch 1, float32, eager", "batch 1, AMP, eager", "batch 3, float32, eager", "batch 3, AMP, eager"]
    assert [entry.setting for entry in found] == texts
    assert all(entry.dense and entry.compressed and not entry.reason for entry in found)
    assert sizes == [parameters(vit), parameters(folder.model)] * 4
    assert sizes[0] > sizes[1]


def test_a_way_that_is_not_to_be_had_is_told(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(model: nn.Module, images: torch.Tensor, setting: Setting) -> Call:
        def fails() -> object:
            raise RuntimeError("no compiler\nand a long trace")

        return fails if setting.compiled else lambda: None

    monkeypatch.setattr(module, "forward", forward)
    found = measure(folder.path, CPU, batch_sizes=(1,), compiled=True, seconds=0.0)
    assert [bool(entry.reason) for entry in found] == [False, False, True, True]
    assert [row[1] for row in rows_of(found)][2:] == ["not available: no compiler"] * 2
    assert found[2] == Comparison(setting="batch 1, float32, compiled", dense=None, compressed=None, reason="no compiler")
    assert found[2].ratio is None


def test_ratios_are_shown_with_their_quartiles() -> None:
    dense, compressed = Timing((0.01, 0.02, 0.04)), Timing((0.005, 0.01, 0.03))
    entry = Comparison(setting=Setting().text, dense=dense, compressed=compressed)
    assert next(rows_of([entry])) == (
        "batch 1, fp32, eager", "20 ms (15–30)", "10 ms (7.5–20)", "×0.50 (0.50–0.62)",
    )  # fmt: skip
    assert entry.ratio is not None
    assert (entry.ratio.seconds, *entry.ratio.quartiles) == (0.5, 0.5, 0.625)


def test_no_folder_and_no_batch_are_one_line(folder: Folder, tmp_path: Path, fails: Fails) -> None:
    assert "cannot be read" in fails("measure", tmp_path / "nothing", "--no-compile")
    assert "at least 1, got 0" in fails("measure", folder.path, "--batch-sizes", "0", "--no-compile")


def test_other_formats_are_timed_beside_the_dense_model_in_them(
    make_vit: MakeVit, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = write_folder(tmp_path / "exported", make_vit, images, formats=("safetensors", "pt2"))
    folders: list[Path] = []

    def noted(folder: Path, name: Any) -> Any:
        folders.append(folder)
        return open_format(folder, name)

    monkeypatch.setattr(module, "open_format", noted)
    found = measure(exported.path, CPU, batch_sizes=(2,), compiled=False, seconds=0.0, formats=("safetensors", "pt2"))
    assert [entry.setting for entry in found][2:] == ["batch 2, torch.export"]
    assert found[2].ratio is not None
    assert folders[0] == exported.path != folders[1]
    with pytest.raises(CheckpointError, match=r"has no model\.onnx"):
        measure(exported.path, CPU, compiled=False, seconds=0.0, formats=("onnx",))


def test_an_archive_of_torch_export_is_not_opened_unless_it_is_named(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails
) -> None:
    there = Path(shutil.copytree(folder.path, tmp_path / "folder"))
    (there / "model.pt2").write_bytes(b"no archive")
    changed(there, lambda config: config["files"].update({"model.pt2": fingerprint_of(there / "model.pt2")}))
    monkeypatch.setattr(torch.export, "load", None)
    found = measure(there, CPU, batch_sizes=(1,), compiled=False, seconds=0.0)
    assert [entry.setting for entry in found] == ["batch 1, float32, eager", "batch 1, AMP, eager"]
    options = ("measure", there, "--no-compile", "--seconds", "0", "--batch-sizes", "1", "--device", "cpu")
    assert "model.pt2 cannot be read" in fails(*options, "--format", "pt2")
    assert "unknown format 'tflite'" in fails(*options, "--format", "tflite")
