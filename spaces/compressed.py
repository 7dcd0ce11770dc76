"""The folder that a compressed model lives in: config.json and model.safetensors, read back with no pickle."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from spaces.allocation import Allocation
from spaces.errors import CheckpointError, CompressionError
from spaces.files import save_tensors, write_json
from spaces.models import instantiate
from spaces.vit import describe, resize

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_KEYS = ("architecture", "model_args", "num_classes", "space", "multiple", "allocation", "pretrained_cfg")


def save_compressed(folder: Path, model: nn.Module, description: dict[str, Any]) -> None:
    """Write `model` into an existing folder.

    Args:
        folder: where config.json and model.safetensors go.
        model: a model of `Factors.build`, fine-tuned or not.
        description: architecture (timm name), model_args, num_classes, space, multiple, allocation (site -> size) and
            pretrained_cfg (the preprocessing); JSON values.
    """
    assert set(_KEYS) <= set(description), f"description lacks {set(_KEYS) - set(description)}"
    save_tensors(folder / WEIGHTS, model.state_dict(), {"format": "pt"})
    write_json(folder / CONFIG, description)


def load_compressed(folder: str | Path) -> nn.Module:
    """The model of a folder written by `save_compressed` or by ``run_search.py export``.

    Needs torch, timm and safetensors only; nothing is unpickled. Its preprocessing is in `model.pretrained_cfg`, where
    `timm.data.resolve_model_data_config` finds it.

    Returns:
        A plain module on the CPU, in evaluation mode: images [B, C, H, W] -> logits [B, classes].

    Raises:
        CheckpointError: a file is missing or corrupt, or the weights do not fit the description.
    """
    folder = Path(folder)
    description = _read_description(folder / CONFIG)
    try:
        model = dense_architecture(folder)
        resize(model, describe(model, description["space"], description["multiple"]), Allocation(description["allocation"]))
        model.load_state_dict(load_file(folder / WEIGHTS), strict=True, assign=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    except RuntimeError as error:  # load_state_dict's word for shapes and names that do not fit
        if isinstance(error, CompressionError):
            raise
        raise CheckpointError(f"{folder / WEIGHTS} does not fit {folder / CONFIG}: {error}") from error
    setattr(model, "pretrained_cfg", {**getattr(model, "pretrained_cfg", {}), **description["pretrained_cfg"]})  # noqa: B010
    return model.eval()


def dense_architecture(folder: str | Path) -> nn.Module:
    """The dense model that a folder's model was made from, with random weights: for its shapes and its speed.

    Raises:
        CheckpointError: config.json is missing or corrupt.
    """
    description = _read_description(Path(folder) / CONFIG)
    return instantiate(
        description["architecture"], {**description["model_args"], "num_classes": description["num_classes"]}
    ).eval()


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    missing = [key for key in _KEYS if not isinstance(description, dict) or key not in description]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}: it was not written by this project's export")
    return dict(description)
