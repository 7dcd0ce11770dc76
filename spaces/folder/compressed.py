"""The folder that a compressed model lives in: config.json and model.safetensors, read back with no pickle."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from spaces.allocation import Allocation
from spaces.errors import CheckpointError, CompressionError, printable, shown
from spaces.files import write_json
from spaces.folder.description import CONFIG, FOLDER_FORMAT, WEIGHTS, checked_file, fingerprint_of, read_description
from spaces.format_number import FORMAT
from spaces.models.create import input_size, instantiate
from spaces.models.preprocessing import WIDEST
from spaces.tensors import save_tensors
from spaces.vit import describe, resize

# A description may be damaged or hostile: a dense model with more numbers than this multiple of the file's is not made, nor one
# of more blocks, of wider images or of more patches, in one block or in all, than any vision transformer has.
_LARGEST, _DEEPEST, _PATCHES, _IN_ALL = 100, 1000, 65_536, 4_000_000


def save_compressed(folder: Path, model: nn.Module, description: dict[str, Any]) -> None:
    """Write `model` into an existing folder; config.json tells the hashes of all model files that are there then.

    Args:
        folder: where config.json and model.safetensors go.
        model: a model of `Factors.build`, fine-tuned or not; its parameters are float32, bfloat16 or float16.
        description: architecture (timm name), model_args, num_classes, space, multiple, allocation (site -> size),
            pretrained_cfg (the preprocessing), label_names (of the classes, or None) and pictures (how picture files become
            images, or None for a model of other than 1 or 3 channels); JSON values.
    """
    save_tensors(folder / WEIGHTS, model.state_dict(), {"format": "pt"})
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    files = {path.name: fingerprint_of(path) for path in sorted(folder.glob("model.*"))}
    write_json(folder / CONFIG, {FORMAT: FOLDER_FORMAT, **description, "dtype": dtype, "files": files})
    read_description(folder)  # what cannot be read back must not be left


def stored_type(description: Mapping[str, Any]) -> torch.dtype:
    """The type of the weights that a description tells."""
    dtype: torch.dtype = getattr(torch, description["dtype"])
    return dtype


def load_compressed(folder: str | Path) -> nn.Module:
    """The model of a folder written by `save_compressed` or by ``run_search.py export``.

    Needs torch, timm and safetensors only; nothing is unpickled, and no memory is taken that the weights do not justify. Its
    preprocessing is in `model.pretrained_cfg`, where `timm.data.resolve_model_data_config` finds it.

    Returns:
        A plain module on the CPU, in evaluation mode, in the dtype of the file: images [B, C, H, W] -> logits [B, classes].

    Raises:
        CheckpointError: a file is missing, corrupt or another one than was exported, or does not fit the description.
    """
    folder = Path(folder)
    description = read_description(folder)
    path = checked_file(folder, WEIGHTS, description)
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    try:
        with _told(folder):
            model = _filled(description, state)
    except RuntimeError as error:  # load_state_dict's word for shapes and names that do not fit
        words = " ".join(str(error).split())  # a line for every tensor
        raise CheckpointError(f"{path} does not fit {folder / CONFIG}: {words[:300]}") from error
    model.pretrained_cfg = {**getattr(model, "pretrained_cfg", {}), **description["pretrained_cfg"]}  # type: ignore[assignment]
    return model.to(stored_type(description)).eval()


def dense_architecture(folder: str | Path) -> nn.Module:
    """The dense model that a folder's model was made from, with random weights: for its shapes and its speed.

    Raises:
        CheckpointError: config.json is missing or corrupt, or describes another model than that of the stored weights.
    """
    folder = Path(folder)
    description = read_description(folder)
    try:
        stored = (folder / WEIGHTS).stat().st_size // stored_type(description).itemsize
    except OSError as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    with _told(folder):
        _check_size(_shapes(description), stored)
        return _instantiate(description).eval()


def dense_shapes(file: Path) -> nn.Module:
    """The dense model that a model file's folder describes, on torch's meta device: its shapes, without any memory.

    Raises:
        CheckpointError: config.json is missing or corrupt, or tells no model, one that takes other images than its
            preprocessing makes, absurdly large ones, or one too large to have become that of the file.
    """
    folder, description = file.parent, read_description(file.parent)
    stored = sum(part.stat().st_size for part in folder.glob(f"{file.name}*"))  # ONNX may keep weights in a file beside it
    with _told(folder, file.name):
        model = _shapes(description)
        _check_size(model, stored // stored_type(description).itemsize)
        return model


@contextmanager
def _told(folder: Path, file: str = WEIGHTS) -> Iterator[None]:
    """Errors say whose description is wrong, on one line of bounded length."""
    try:
        yield
    except CompressionError as error:
        words = printable(str(error), 500)
        raise CheckpointError(f"{folder / CONFIG} does not describe the model of {file}: {words}") from error


def _shapes(description: Mapping[str, Any]) -> nn.Module:
    depth = description["model_args"].get("depth")
    if isinstance(depth, int) and depth > _DEEPEST:
        raise CheckpointError(f"model_args has depth {shown(depth)}, and no vision transformer more than {_DEEPEST} blocks")
    with torch.device("meta"):
        model = _instantiate(description).eval()
    size, given = list(input_size(model)), description["pretrained_cfg"]["input_size"]
    if size != given:
        raise CheckpointError(f"the model takes images of {size}, but pretrained_cfg has input_size {shown(given)}")
    patches = getattr(model.patch_embed, "num_patches", 0)
    if max(size) > WIDEST or (isinstance(patches, int) and patches > _PATCHES):
        raise CheckpointError(f"images of {size} are more than {WIDEST} pixels wide, or give more than {_PATCHES:,} patches")
    if isinstance(patches, int) and patches * len(getattr(model, "blocks", ())) > _IN_ALL:
        raise CheckpointError(f"{patches:,} patches in each of {len(model.blocks):,} blocks are more than {_IN_ALL:,}")  # type: ignore[arg-type]
    return model


def _instantiate(description: Mapping[str, Any]) -> nn.Module:
    return instantiate(description["architecture"], {**description["model_args"], "num_classes": description["num_classes"]})


def _filled(description: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
    """The model with the stored weights; they are compared with its shapes before any other memory is taken."""
    model = _shapes(description)
    _check_size(model, sum(map(Tensor.numel, state.values())))
    _resize(model, description)
    _check_tensors(model, description, state)
    model.load_state_dict(state, strict=True, assign=True)
    if any(buffer.is_meta for buffer in model.buffers()):  # those that are computed, not stored: of rotary positions, say
        model = _instantiate(description)
        _resize(model, description)
        model.load_state_dict(state, strict=True, assign=True)
    return model


def _resize(model: nn.Module, description: Mapping[str, Any]) -> None:
    resize(model, describe(model, description["space"], description["multiple"]), Allocation(description["allocation"]))


def _check_size(dense: nn.Module, stored: int) -> None:
    numbers = sum(map(Tensor.numel, dense.parameters()))
    if numbers > _LARGEST * stored:
        raise CheckpointError(f"a model of {numbers:,} parameters cannot have become one of {stored:,}")


def _check_tensors(model: nn.Module, description: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Raise unless stored tensors have the types of the model's, and weights are finite."""
    stored, weights = stored_type(description), dict(model.named_parameters())
    for key, expected in model.state_dict().items():
        found = state.get(key)
        if found is None:
            continue  # load_state_dict says so
        dtype = stored if expected.is_floating_point() else expected.dtype
        if found.dtype != dtype:
            raise CheckpointError(f"{key} is stored in {found.dtype}, not in {dtype}")
        if key in weights and not bool(found.isfinite().all()):
            raise CheckpointError(f"{key} holds NaN or infinite weights")
