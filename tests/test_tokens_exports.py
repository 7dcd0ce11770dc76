"""Models whose patch tokens become fewer, written as ONNX and as torch.export's archive, and read back.

Which tokens are most similar may be decided by the last bits, in which runtimes differ; on these images and weights it is not.
"""

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from local_tokens import largest, model_of, outputs, reduced, schedule_of
from local_vits import MakeVit
from torch import Tensor, nn

from objectives.deploy.activations import activations
from objectives.deploy.formats import write_formats
from objectives.deploy.onnx_file import checked_onnx
from objectives.deploy.pt2_archive import load_archive

LONG = ("distilled", "no classes", "low-rank")
KINDS = ("averaged", "contracted", *(pytest.param(kind, marks=pytest.mark.long) for kind in LONG))
BATCHES = (1, 5)


def written(folder: Path, model: nn.Module) -> Path:
    write_formats(folder, model, ("onnx", "pt2"), {})
    return folder


def run_onnx(path: Path, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(["logits"], {"images": images.numpy()})[0]
    return torch.from_numpy(found)


@pytest.mark.parametrize("name", KINDS)
def test_both_formats_give_the_same_outputs_for_batches_of_any_size(
    make_vit: MakeVit, images: Tensor, tmp_path: Path, name: str
) -> None:
    model = model_of(make_vit, name)
    folder = written(tmp_path, reduced(model, schedule_of(model)))
    loaded = load_archive(folder / "model.pt2").module()
    for count in BATCHES:
        wanted = outputs(model, images[:count])
        assert largest(run_onnx(folder / "model.onnx", images[:count]) - wanted) < 1e-4
        assert largest(outputs(loaded, images[:count]) - wanted) < 1e-4


@pytest.mark.long
def test_how_much_files_compute_is_known_before_they_run(make_vit: MakeVit, tmp_path: Path) -> None:
    """Shapes are static, so what computes too much is refused; fewer tokens compute less."""
    numbers: dict[str, list[int]] = {"onnx": [], "pt2": []}
    for name, counts in (("few", (8, 4, 0)), ("many", (15, 14, 0))):
        (tmp_path / name).mkdir()
        model = model_of(make_vit, "class token", embed_dim=64)
        folder = written(tmp_path / name, reduced(model, counts))
        for batch in BATCHES:
            numbers["onnx"].append(checked_onnx(folder / "model.onnx", (batch, 3, 16, 16)))
            numbers["pt2"].append(activations(load_archive(folder / "model.pt2").module(), (batch, 3, 16, 16)))
    for one, five, one_of_many, five_of_many in numbers.values():
        assert one < five < 6 * one
        assert one < one_of_many
        assert five < five_of_many


def test_operators_are_the_standard_ones_and_nothing_is_scattered(make_vit: MakeVit, tmp_path: Path) -> None:
    model = onnx.load(written(tmp_path, reduced(model_of(make_vit, "averaged"), (13, 8, 7))) / "model.onnx")
    names = {node.op_type for node in model.graph.node}
    assert {node.domain for node in model.graph.node} == {""}
    assert "TopK" in names
    assert not any("Scatter" in name or name in ("NonZero", "Loop", "If") for name in names)


def test_half_precision_is_written_too(make_vit: MakeVit, images: Tensor, tmp_path: Path) -> None:
    model = model_of(make_vit, "class token")
    reduce = reduced(copy.deepcopy(model), schedule_of(model)).half()
    write_formats(tmp_path, reduce, ("onnx",), {})
    wanted = outputs(reduce, images[:5].half()).float()
    assert largest(run_onnx(tmp_path / "model.onnx", images[:5]) - wanted) < 0.02 * largest(wanted)
