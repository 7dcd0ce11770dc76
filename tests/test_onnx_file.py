"""ONNX files that would read others, run foreign operators or take memory: refused before a runtime gets them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from local_folders import Folder, changed, write_folder
from local_vits import MakeVit
from onnx import TensorProto, helper
from torch import Tensor

from objectives.deploy import activations
from objectives.deploy.formats import open_format
from objectives.deploy.onnx_file import checked_onnx
from spaces.errors import CheckpointError
from spaces.folder.description import fingerprint_of

SHAPE = (1, 3, 16, 16)
Change = Callable[[Any], object]  # of an onnx.ModelProto


@pytest.fixture(scope="module")
def original(make_vit: MakeVit, images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return write_folder(tmp_path_factory.mktemp("onnx") / "whole", make_vit, images, formats=("safetensors", "onnx"))


def altered(original: Folder, tmp_path: Path, change: Change) -> Path:
    """A folder whose ONNX file was changed, with its hash."""
    folder = Path(shutil.copytree(original.path, tmp_path / "folder"))
    model = onnx.load(str(folder / "model.onnx"))
    change(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return as_told(folder, "model.*")


def as_told(folder: Path, pattern: str) -> Path:
    """Have config.json tell the hashes of these files."""
    files = {path.name: fingerprint_of(path) for path in folder.glob(pattern)}
    return changed(folder, lambda config: config.update(files=files))


def outside(location: str, **more: str) -> Change:
    """The first weight is in a file of this name."""

    def change(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **more}.items():
            tensor.external_data.add(key=key, value=value)

    return change


def first(*nodes: Any, **tensors: Any) -> Change:
    """Further operators before the others."""

    def change(model: Any) -> None:
        model.graph.initializer.extend(tensors.values())
        there = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend([*nodes, *there])

    return change


def claims(model: Any) -> None:
    """A weight of a million million numbers."""
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend((10**6, 10**6))


def constant(model: Any) -> None:
    tensor = TensorProto(name="x", data_type=TensorProto.FLOAT, dims=[10**6, 10**6], raw_data=b"1234")
    first(helper.make_node("Constant", [], ["x"], value=tensor))(model)


def looped(model: Any) -> None:
    body = helper.make_graph([], "body", [], [])
    first(helper.make_node("Loop", ["", ""], ["x"], body=body))(model)


def local_function(model: Any) -> None:
    function = helper.make_function("", "Own", ["a"], ["b"], [helper.make_node("Identity", ["a"], ["b"])], model.opset_import)
    model.functions.append(function)


def of_other_domain(model: Any) -> None:
    model.opset_import.add(domain="com.microsoft", version=1)
    first(helper.make_node("FusedGemm", ["images"], ["x"], domain="com.microsoft"))(model)


def second_input(model: Any) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def second_output(model: Any) -> None:
    model.graph.output.append(helper.make_tensor_value_info("images", TensorProto.FLOAT, [1]))


HUGE = helper.make_tensor("huge", TensorProto.INT64, [2], [10**5, 10**5])
ONE = helper.make_tensor("one", TensorProto.FLOAT, [1, 1], [1.0])


def growing(model: Any) -> None:
    """A value whose size is the tenth power of the number of images: 1 of one image, 10^10 of ten."""
    powers = [helper.make_node("Mul", [f"p{index}", "p0"], [f"p{index + 1}"]) for index in range(9)]
    shape = helper.make_node("Shape", ["images"], ["p0"], start=0, end=1)
    first(shape, *powers, helper.make_node("ConstantOfShape", ["p9"], ["x"]))(model)


BOMBS: dict[str, Change] = {
    "constant of a shape": first(helper.make_node("ConstantOfShape", ["huge"], ["x"]), huge=HUGE),
    "expanded": first(helper.make_node("Expand", ["one", "huge"], ["x"]), huge=HUGE, one=ONE),
    "tiled": first(helper.make_node("Tile", ["one", "huge"], ["x"]), huge=HUGE, one=ONE),
}
EVIL: dict[str, tuple[Change, str]] = {
    "absolute": (outside("/etc/passwd"), "is in '/etc/passwd', and not in model.onnx.data"),
    "above": (outside("../model.onnx.data"), "and not in model.onnx.data"),
    "config": (outside("config.json"), "and not in model.onnx.data"),
    "no file": (outside("model.onnx.data"), "is at no place in model.onnx.data"),
    "negative": (outside("model.onnx.data", offset="-4"), "is at no place in"),
    "claims": (claims, "says to have 1,000,000,000,000 numbers, and has"),
    "constant": (constant, "says to have 1,000,000,000,000 numbers, and has 1"),
    "loop": (looped, "'Loop' has a graph of its own"),
    "function": (local_function, "it has functions"),
    "domain": (of_other_domain, "operators of the domain 'com.microsoft'"),
    "input": (second_input, "its input is not images alone"),
    "output": (second_output, "its output is not logits alone"),
    "unknown size": (
        first(helper.make_node("NonZero", ["images"], ["x"])), "how large its value 'x' becomes is not known before it runs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EVIL)
def test_what_an_export_does_not_write_is_refused(original: Folder, tmp_path: Path, name: str) -> None:
    change, words = EVIL[name]
    with pytest.raises(CheckpointError) as caught:
        open_format(altered(original, tmp_path, change), "onnx")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BOMBS)
def test_operators_that_give_more_than_the_model_are_refused(original: Folder, tmp_path: Path, name: str) -> None:
    """Ten thousand millions of numbers from a file of some kilobytes."""
    with pytest.raises(CheckpointError, match=r"computes 10,000,\d+,\d+ numbers for 1 image"):
        open_format(altered(original, tmp_path, BOMBS[name]), "onnx")


def test_operators_that_give_more_for_a_batch_are_refused(original: Folder, tmp_path: Path) -> None:
    forward = open_format(altered(original, tmp_path, growing), "onnx")
    pictures = original.images(10)
    assert torch.equal(forward(pictures[:1]), open_format(original.path, "onnx")(pictures[:1]))
    with pytest.raises(CheckpointError, match=r"computes 10,\d+,\d+,\d+ numbers for 10 image"):
        forward(pictures)


def test_a_description_larger_than_the_file_allows_no_more(original: Folder, tmp_path: Path) -> None:
    """How much a file may compute is not what a description says of a model that its weights cannot have come from."""
    folder = altered(original, tmp_path, BOMBS["expanded"])
    changed(folder, lambda config: config["model_args"].update(embed_dim=96_000))
    with pytest.raises(CheckpointError, match=r"does not describe the model of model\.onnx: a model of [\d,]+ parameters"):
        open_format(folder, "onnx")


def test_little_work_is_not_compared_with_the_dense_model(
    original: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where timm does not know the architecture, a file still runs that computes less than what hurts any machine."""
    folder, pictures = Path(shutil.copytree(original.path, tmp_path / "folder")), original.images(2)
    changed(folder, lambda config: config.update(architecture="of_another_timm"))
    assert torch.equal(open_format(folder, "onnx")(pictures), open_format(original.path, "onnx")(pictures))
    monkeypatch.setattr(activations, "_HARMLESS", checked_onnx(original.path / "model.onnx", (2, *SHAPE[1:])) - 1)
    forward = open_format(folder, "onnx")
    assert torch.equal(forward(pictures[:1]), open_format(original.path, "onnx")(pictures[:1]))
    with pytest.raises(CheckpointError, match=r"does not describe the model of model\.onnx: timm has no model"):
        forward(pictures)


def test_what_takes_wider_images_than_any_model_is_refused(original: Folder, tmp_path: Path) -> None:
    """Its operators give few numbers, but every picture would be resized to its size."""

    def wide(model: Any) -> None:
        for entry, value in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], (1, 5000), strict=True):
            entry.dim_value = value
        del model.graph.node[:]
        flat = helper.make_node("GlobalAveragePool", ["images"], ["x"])
        model.graph.node.extend([flat, helper.make_node("Flatten", ["x"], ["logits"])])

    folder = altered(original, tmp_path, wide)
    changed(folder, lambda config: config["pretrained_cfg"].update(input_size=[3, 1, 5000]))
    with pytest.raises(CheckpointError, match=r"pretrained_cfg has input_size \[3, 1, 5000\]"):
        open_format(folder, "onnx")


def test_weights_beside_the_file_are_read_from_there_alone(original: Folder, tmp_path: Path) -> None:
    def split(model: Any) -> None:
        onnx.save_model(
            model, str(tmp_path / "model.onnx"), save_as_external_data=True, location="model.onnx.data", size_threshold=1000
        )

    folder = altered(original, tmp_path, split)
    for name in ("model.onnx", "model.onnx.data"):
        shutil.copy(tmp_path / name, folder / name)
    whole = checked_onnx(original.path / "model.onnx", SHAPE)
    assert checked_onnx(folder / "model.onnx", SHAPE) == whole
    with pytest.raises(CheckpointError, match=r"has no model\.onnx\.data: it was exported with"):
        open_format(as_told(folder, "model.onnx"), "onnx")
    forward, pictures = open_format(as_told(folder, "model.onnx*"), "onnx"), original.images(2)
    assert torch.equal(forward(pictures), open_format(original.path, "onnx")(pictures))
    content = (folder / "model.onnx.data").read_bytes()
    (folder / "model.onnx.data").write_bytes(content[:1000])
    with pytest.raises(CheckpointError, match=r"is longer than model\.onnx\.data"):
        checked_onnx(folder / "model.onnx", SHAPE)


def test_numbers_that_operators_give_are_counted_by_hand(tmp_path: Path) -> None:
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 4, 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 48])
    nodes = [helper.make_node("Relu", ["images"], ["x"]), helper.make_node("Flatten", ["x"], ["logits"])]
    model = helper.make_model(helper.make_graph(nodes, "g", [images], [logits]), opset_imports=[helper.make_opsetid("", 20)])
    onnx.save_model(model, str(tmp_path / "model.onnx"))
    assert checked_onnx(tmp_path / "model.onnx", (2, 3, 4, 4)) == 2 * (3 * 4 * 4 + 48)
    with pytest.raises(CheckpointError, match=r"it takes images of \[3, 4, 4\], and config\.json says \[3, 8, 8\]"):
        checked_onnx(tmp_path / "model.onnx", (1, 3, 8, 8))


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"PK\x03\x04", b"\x80\x04.", b"\xff" * 1000])
def test_what_is_no_onnx_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.onnx (cannot be read as ONNX|is refused)") as caught:
        checked_onnx(tmp_path / "model.onnx", SHAPE)
    assert "\n" not in str(caught.value)
