"""The files that a model is handed over in, besides safetensors: ONNX and torch.export's archive; written and read back.

Both take float32 images [B, C, H, W], whatever the dtype of the weights, and give float32 logits [B, classes], for any B.
"""

import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from objectives.deploy.activations import activations, bound
from objectives.deploy.config import FILES, Dtype, Format, require_onnx
from objectives.deploy.onnx_file import checked_onnx, weights_beside
from objectives.deploy.pt2_archive import load_archive
from spaces.errors import CheckpointError, first_line
from spaces.folder.description import checked_file, read_description

Forward = Callable[[Tensor], Tensor]  # float32 images [B, C, H, W] on the CPU -> float32 logits [B, classes]

DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OPSET = 20  # of ONNX: the first with GELU as one operator, and what torch's exporter writes by default
_SHAPES = {"images": {0: Dim("batch")}}
_FATAL = 4  # level of onnxruntime's log
_ONE_FILE = 2_000_000_000  # bytes: protobuf's limit is 2 GiB, beyond which ONNX keeps weights in a file of their own


class _Portable(nn.Module):
    """A model of any dtype, with float32 images and logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.to(next(self.model.parameters()).dtype))
        return logits.float()


def write_formats(folder: Path, model: nn.Module, formats: Sequence[Format], facts: Mapping[str, Any]) -> None:
    """Write model.onnx and model.pt2 as wanted, from one trace of the model.

    Args:
        folder: an existing one.
        model: on the CPU, in evaluation mode.
        formats: which to write; safetensors are `save_compressed`'s.
        facts: JSON values that the ONNX file carries: the preprocessing, the names of the classes.

    Raises:
        CheckpointError: the model cannot be traced or converted.
    """
    wanted = [name for name in _WRITE if name in formats]
    if not wanted:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporters, about their own next versions
            program = traced(model)
            for name in wanted:
                _WRITE[name](program, folder / FILES[name], facts)
    except OSError:  # a full disk says so itself
        raise
    except Exception as error:  # exporters raise what they like; all of it means the same to the user
        raise CheckpointError(f"the model cannot be written as {' and '.join(wanted)}: {first_line(error)[:300]}") from error


def traced(model: nn.Module) -> ExportedProgram:
    """The program of a model, for batches of any size; no image is kept in it."""
    from spaces.models.create import input_size

    images = torch.zeros(2, *input_size(model))
    program = torch.export.export(_Portable(model), (images,), dynamic_shapes=_SHAPES)
    program.example_inputs = None  # else they are in the archive, pickled
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _write_pt2(program: ExportedProgram, path: Path, facts: Mapping[str, Any]) -> None:
    torch.export.save(program, path)


def _write_onnx(program: ExportedProgram, path: Path, facts: Mapping[str, Any]) -> None:
    import onnx

    for name in ("onnxscript", "onnx_ir"):  # notes of their optimisers
        logging.getLogger(name).setLevel(logging.ERROR)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    converted = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes=_SHAPES,
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    assert converted is not None
    for node in converted.model.graph:
        node.metadata_props.clear()  # the exporter's notes for debugging, longer than a small model
    converted.model.metadata_props.update({key: json.dumps(value) for key, value in facts.items()})
    converted.save(path, external_data=weights > _ONE_FILE)
    onnx.checker.check_model(str(path), full_check=True)


_WRITE: dict[Format, Callable[[ExportedProgram, Path, Mapping[str, Any]], None]] = {"onnx": _write_onnx, "pt2": _write_pt2}


def open_format(folder: Path, name: Format, device: torch.device | None = None) -> Forward:
    """A model of an exported folder in one of its formats, after the hash of its file was compared with config.json.

    Args:
        folder: of `run_search.py export`.
        name: which format.
        device: where safetensors run; the others run on the CPU.

    Raises:
        CheckpointError: the folder does not have it, or the file is another one or cannot be read.
        ConfigError: onnxruntime is not installed.
    """
    if name == "onnx":
        require_onnx()
    description = read_description(folder)
    path = checked_file(folder, FILES[name], description)
    beside = weights_beside(path)  # of an ONNX file of more than 2 GB
    if name == "onnx" and beside.exists():
        checked_file(folder, beside.name, description)
    try:
        return _OPEN[name](path, device or torch.device("cpu"))
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # every reader raises its own kind
        raise CheckpointError(f"{path} cannot be read: {first_line(error)[:300]}") from error


def portable(model: nn.Module) -> Forward:
    """A model of any dtype and device as all formats are called: float32 images on the CPU -> float32 logits there."""
    device, wrapped = next(model.parameters()).device, _Portable(model)
    return lambda images: _no_gradient(wrapped, images.to(device)).cpu()


def _open_safetensors(path: Path, device: torch.device) -> Forward:
    from spaces.folder.compressed import load_compressed  # with timm, which ONNX files and archives do without

    return portable(load_compressed(path.parent).to(device))


def _open_pt2(path: Path, device: torch.device) -> Forward:
    model = load_archive(path).module()
    check = bound(path, partial(activations, model))

    def forward(images: Tensor) -> Tensor:
        check(len(images))
        return _no_gradient(model, images)

    return forward


def _no_gradient(model: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(images)
        return logits


def _open_onnx(path: Path, device: torch.device) -> Forward:
    import onnxruntime

    check = bound(path, partial(checked_onnx, path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as the formats that it is compared with
    options.log_severity_level = _FATAL  # what it raises is told once
    quiet = {"enable_fallback": 0}  # to the providers that failed, which it prints
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], **quiet)

    def forward(images: Tensor) -> Tensor:
        check(len(images))
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return forward


_OPEN: dict[Format, Callable[[Path, torch.device], Forward]] = {
    "safetensors": _open_safetensors, "onnx": _open_onnx, "pt2": _open_pt2,
}  # fmt: skip
