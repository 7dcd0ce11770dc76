"""The folder that a compressed model lives in: config.json and model.safetensors, read back with no pickle."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from spaces.allocation import Allocation
from spaces.description import CONFIG, DTYPES, checked_file, fingerprint_of, read_description, stored_type
from spaces.errors import CheckpointError, CompressionError
from spaces.files import save_tensors, write_json
from spaces.models import input_size, instantiate
from spaces.vit import describe, resize

WEIGHTS = "model.safetensors"
# A description may be damaged or hostile: a dense model with more numbers than this multiple of the file's is not made.
_LARGEST = 1000


def save_compressed(folder: Path, model: nn.Module, description: dict[str, Any]) -> None:
    """Write `model` into an existing folder; config.json tells the hashes of all model files that are there then.

    Args:
        folder: where config.json and model.safetensors go.
        model: a model of `Factors.build`, fine-tuned or not; its parameters are float32, bfloat16 or float16.
        description: architecture (timm name), model_args, num_classes, space, multiple, allocation (site -> size),
            pretrained_cfg (the preprocessing) and label_names (of the classes, or None); JSON values.
    """
    save_tensors(folder / WEIGHTS, model.state_dict(), {"format": "pt"})
    dtype = next(name for name, dtype in DTYPES.items() if dtype == next(model.parameters()).dtype)
    files = {path.name: fingerprint_of(path) for path in sorted(folder.glob("model.*"))}
    write_json(folder / CONFIG, {**description, "dtype": dtype, "files": files})
    read_description(folder)  # what cannot be read back must not be left


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
        model = _filled(description, state)
    except CompressionError as error:
        raise CheckpointError(f"{folder / CONFIG} does not describe the model of {path.name}: {error}") from error
    except RuntimeError as error:  # load_state_dict's word for shapes and names that do not fit
        raise CheckpointError(f"{path} does not fit {folder / CONFIG}: {error}") from error
    model.pretrained_cfg = {**getattr(model, "pretrained_cfg", {}), **description["pretrained_cfg"]}  # type: ignore[assignment]
    return model.to(stored_type(description)).eval()


def dense_architecture(folder: str | Path) -> nn.Module:
    """The dense model that a folder's model was made from, with random weights: for its shapes and its speed.

    Raises:
        CheckpointError: config.json is missing or corrupt.
    """
    return _instantiate(read_description(Path(folder))).eval()


def _instantiate(description: dict[str, Any]) -> nn.Module:
    return instantiate(description["architecture"], {**description["model_args"], "num_classes": description["num_classes"]})


def _filled(description: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
    """The model with the stored weights; they are compared with its shapes before any other memory is taken."""
    dtype = stored_type(description)
    odd = next((key for key, tensor in state.items() if tensor.is_floating_point() and tensor.dtype != dtype), None)
    if odd is not None:
        raise CheckpointError(f"{odd} is stored in {state[odd].dtype}, not in {dtype}")
    with torch.device("meta"):
        model = _structure(description, state)
    model.load_state_dict(state, strict=True, assign=True)
    if any(buffer.is_meta for buffer in model.buffers()):  # those that are computed, not stored: of rotary positions, say
        model = _structure(description, state)
        model.load_state_dict(state, strict=True, assign=True)
    if list(input_size(model)) != list(description["pretrained_cfg"]["input_size"]):
        wanted, given = list(input_size(model)), description["pretrained_cfg"]["input_size"]
        raise CheckpointError(f"the model takes images of {wanted}, but pretrained_cfg has input_size {given}")
    return model


def _structure(description: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
    arguments = description["model_args"]
    if isinstance(arguments.get("depth"), int) and arguments["depth"] > len(state):
        raise CheckpointError(f"model_args has depth {arguments['depth']}, but {len(state)} tensors are stored")
    model = _instantiate(description)
    dense, stored = (sum(map(Tensor.numel, tensors)) for tensors in (model.parameters(), state.values()))
    if dense > _LARGEST * stored:
        raise CheckpointError(f"a model of {dense:,} parameters cannot have become one of {stored:,}")
    resize(model, describe(model, description["space"], description["multiple"]), Allocation(description["allocation"]))
    return model
