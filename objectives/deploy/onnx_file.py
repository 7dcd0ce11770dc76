"""An ONNX file checked before a runtime gets it: where its weights are, which operators it has and how much they compute."""

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spaces.errors import CheckpointError, first_line, shown

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

_DOMAINS = ("", "ai.onnx")  # ONNX's own operators
_ENTRIES = ("location", "offset", "length", "checksum")
_TYPED = ("float_data", "int32_data", "int64_data", "uint64_data", "double_data", "string_data")
_SMALL = 10_000  # numbers of a tensor that may be a shape


def checked_onnx(path: Path, shape: Sequence[int]) -> int:
    """How many numbers the operators of a file compute for a batch of images.

    What is read are the file's structure and, of the weights, their sizes: no operator runs.

    Args:
        path: the file; weights of their own are in `<name>.data` beside it.
        shape: [B, C, H, W] of the images.

    Raises:
        CheckpointError: it is no ONNX file of one input `images` and one output `logits`, has operators of other domains or
            with graphs of their own, weights that are not there or elsewhere, or operators that give nobody knows how much.
    """
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
        problem = next(_problems(model, path), None)
        if problem is None:
            return _computed(model, shape)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # protobuf's and ONNX's errors have no common base
        raise CheckpointError(f"{path} cannot be read as ONNX: {first_line(error)[:200]}") from error
    raise CheckpointError(f"{path} is refused: {problem}; this project's export writes no such file")


def weights_beside(path: Path) -> Path:
    """Where the weights of a file are that is too large to hold them."""
    return path.with_name(f"{path.name}.data")


def _problems(model: "ModelProto", path: Path) -> Iterator[str]:
    graph = model.graph
    if model.functions or model.training_info or graph.sparse_initializer:
        yield "it has functions, sparse weights or a training graph"
    domains = [*(entry.domain for entry in model.opset_import), *(node.domain for node in graph.node)]
    yield from (f"it needs operators of the domain {shown(name)}" for name in domains if name not in _DOMAINS)
    initial = {tensor.name for tensor in graph.initializer}
    if [entry.name for entry in graph.input if entry.name not in initial] != ["images"]:
        yield "its input is not images alone"
    if [entry.name for entry in graph.output] != ["logits"]:
        yield "its output is not logits alone"
    for node in graph.node:
        yield from _of_node(node)
    yield from filter(None, (_of_tensor(tensor, path) for tensor in _tensors(graph)))


def _of_node(node: "NodeProto") -> Iterator[str]:
    for attribute in node.attribute:
        if attribute.HasField("g") or attribute.graphs or attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            yield f"its operator {shown(node.op_type)} has a graph of its own or sparse weights"


def _tensors(graph: "GraphProto") -> Iterator["TensorProto"]:
    yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors


def _of_tensor(tensor: "TensorProto", path: Path) -> str | None:
    """What is wrong with a tensor: each of its numbers must be in the file, or in the one beside it."""
    import onnx

    try:
        width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, TypeError, ValueError):
        return f"its weight {shown(tensor.name)} is of the type {tensor.data_type}, which is unknown"
    if any(entry < 0 for entry in tensor.dims):
        return f"its weight {shown(tensor.name)} has the shape {shown(list(tensor.dims))}"
    numbers = math.prod(tensor.dims)
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        return _of_external(tensor, path, numbers * width)
    raw, typed = len(tensor.raw_data) // width, max(len(getattr(tensor, name)) for name in _TYPED)
    there = raw if tensor.HasField("raw_data") else typed
    return None if there == numbers else f"its weight {shown(tensor.name)} says to have {numbers:,} numbers, and has {there:,}"


def _of_external(tensor: "TensorProto", path: Path, size: int) -> str | None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    beside = weights_beside(path)
    if entries.get("location") != beside.name or any(key not in _ENTRIES for key in entries):
        return f"its weight {shown(tensor.name)} is in {shown(entries.get('location'))}, and not in {beside.name}"
    numbers = [entries.get(key, "0") for key in ("offset", "length")]
    if not all(text.isascii() and text.isdigit() and len(text) < 16 for text in numbers) or not beside.is_file():
        return f"its weight {shown(tensor.name)} is at no place in {beside.name}"
    offset, length = map(int, numbers)
    if offset + max(size, length) > beside.stat().st_size or (length and length != size):
        return f"its weight {shown(tensor.name)} is longer than {beside.name}"
    return None


def _computed(model: "ModelProto", shape: Sequence[int]) -> int:
    """Numbers that all operators give, by ONNX's own inference of shapes; the file's claims are left out."""
    import onnx

    graph = model.graph
    _set_shape(next(entry for entry in graph.input if entry.name == "images").type.tensor_type, shape)
    del graph.value_info[:]
    graph.output[0].type.tensor_type.ClearField("shape")
    for tensor in _tensors(graph):
        if math.prod(tensor.dims) > _SMALL:
            tensor.ClearField("raw_data")
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {entry.name: entry.type for entry in (*inferred.value_info, *inferred.output)}
    return sum(_numbers(name, shapes.get(name)) for node in graph.node for name in node.output if name)


def _set_shape(kind: Any, shape: Sequence[int]) -> None:
    """Give the input a shape; the file may leave open how many images there are, and nothing else."""
    given = [entry.dim_value for entry in kind.shape.dim if entry.HasField("dim_value")]
    if given not in ([*shape], [*shape[1:]]) or len(kind.shape.dim) != len(shape):
        raise ValueError(f"it takes images of {shown(given)}, and config.json says {shown(list(shape[1:]))}")
    for entry, value in zip(kind.shape.dim, shape, strict=True):
        entry.dim_value = value


def _numbers(name: str, kind: Any) -> int:
    dims = kind.tensor_type.shape.dim if kind is not None and kind.tensor_type.HasField("shape") else None
    if dims is None or not all(entry.HasField("dim_value") and 0 <= entry.dim_value < sys.maxsize for entry in dims):
        raise ValueError(f"how large its value {shown(name)} becomes is not known before it runs")
    return math.prod(entry.dim_value for entry in dims)
