"""The dense model: created by timm, filled from timm's weights or from the user's checkpoint, with its preprocessing."""

import difflib
import pickle
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.models import load_state_dict
from torch import Tensor, nn

from spaces.description import preprocessing_problem
from spaces.errors import CheckpointError, ModelError, first_line, shown


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which dense model to compress. Names are timm's.

    Attributes:
        model: timm model name.
        pretrained: load timm's pretrained weights (downloads them).
        checkpoint: .safetensors or .pth state dict of this model, in place of timm's weights.
        num_classes: classes of the head; by default those of the checkpoint, else timm's own.
        model_kwargs: further arguments of timm.create_model, e.g. img_size=28 embed_dim=128.
        mean, std: normalisation per channel; by default the model's own.
        interpolation: resize filter; by default the model's own.
        crop_pct: share of the resized image that evaluation crops; by default the model's own.
    """

    model: str = ""
    pretrained: bool = False
    checkpoint: str | None = None
    num_classes: int | None = None
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None


def create_model(config: ModelConfig) -> nn.Module:
    """The dense model on the CPU, in evaluation mode.

    Raises:
        ModelError: unknown name (with near ones), or arguments that timm refuses.
        CheckpointError: the weights are missing, corrupt, pickled, or of another model.
    """
    state = _read_checkpoint(Path(config.checkpoint)) if config.checkpoint else None
    arguments = dict(config.model_kwargs)
    classes = config.num_classes if config.num_classes is not None else _classes_of(state)
    if classes is not None:
        arguments["num_classes"] = classes
    model = instantiate(config.model, arguments, pretrained=config.pretrained and state is None)
    if state is not None:
        _load_strictly(model, state, config)
    return model.eval()


def instantiate(name: str, arguments: dict[str, Any], pretrained: bool = False) -> nn.Module:
    """`timm.create_model` with errors that say what to do.

    Raises:
        ModelError: unknown name, or arguments that timm refuses.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists the known ones"
        raise ModelError(f"timm has no model {name!r}: {hint}")
    try:
        model = timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:  # timm, the hub and torch raise what they like here; all of it means the same to the user
        what = "with its pretrained weights " if pretrained else ""
        raise ModelError(f"timm cannot create {name!r} {what}from {shown(arguments)}: {first_line(error)[:200]}") from error
    assert isinstance(model, nn.Module)
    return model


def preprocessing(model: nn.Module, config: ModelConfig) -> dict[str, Any]:
    """How an image becomes the model's input, in the names of `timm.data.create_transform`.

    Returns:
        input_size [C, H, W], interpolation, mean and std (one value per channel), crop_pct, crop_mode.

    Raises:
        ModelError: mean or std has neither one value nor one per channel, or a value is absurd.
    """
    channels, height, width = input_size(model)
    cfg: dict[str, Any] = dict(getattr(model, "pretrained_cfg", None) or {})
    for key, given in (("mean", config.mean), ("std", config.std)):
        values = tuple(given or cfg.get(key) or (0.5,))
        if len(values) != channels:
            if given and len(given) != 1:
                raise ModelError(f"--{key} has {len(given)} values, but the model's images have {channels} channel(s)")
            values = (sum(values) / len(values),) * channels
        cfg[key] = values
    options = {"interpolation": config.interpolation, "crop_pct": config.crop_pct}
    cfg.update({key: value for key, value in options.items() if value is not None}, input_size=(channels, height, width))
    resolved = resolve_data_config({}, pretrained_cfg=cfg)
    keys = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    found = {key: list(resolved[key]) if isinstance(resolved[key], tuple) else resolved[key] for key in keys}
    problem = preprocessing_problem(found)
    if problem:
        raise ModelError(f"images cannot be prepared for this model: {problem}")
    return found


def input_size(model: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width of the images that the model was created for.

    Raises:
        ModelError: the model has no patch embedding that tells.
    """
    embed = getattr(model, "patch_embed", None)
    projection = getattr(embed, "proj", None)
    channels = getattr(projection, "in_channels", None)
    if channels is None:
        raise ModelError(f"{type(model).__name__} has no convolutional patch embedding, as plain vision transformers have")
    if hasattr(embed, "backbone"):  # hybrids: the projection sees the backbone's channels, not the image's
        channels = model.pretrained_cfg["input_size"][0]  # type: ignore[index]
    size = getattr(embed, "img_size", None) or model.pretrained_cfg["input_size"][1:]  # type: ignore[index]
    return int(channels), int(size[0]), int(size[1])


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickle protocols before it refuses them
            state = dict(load_state_dict(str(path), weights_only=True).items())
    except Exception as error:  # foreign bytes make the readers raise anything
        raise CheckpointError(f"{path} {_problem(path, error)}") from error
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors")
    broken = [key for key, value in tensors.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        raise CheckpointError(f"{path} holds NaN or infinite weights in {broken[0]}")
    return tensors


def _problem(path: Path, error: Exception) -> str:
    """Why a file gave no weights; a pickle is told from noise by how it begins."""
    refused = isinstance(error.__cause__ or error, pickle.UnpicklingError)  # timm's error, made from torch's
    if refused and _beginning(path).startswith((b"PK", b"\x80")):
        return "holds pickled Python objects, which can run code when loaded: save its state_dict() or safetensors"
    reason = "no PyTorch file" if refused else first_line(error)[:200]
    return f"cannot be read as weights ({reason}): cut short, or of another format?"


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2)


def _classes_of(state: dict[str, Tensor] | None) -> int | None:
    head = None if state is None else state.get("head.weight")
    return None if head is None or head.ndim == 0 else int(head.shape[0])


def _load_strictly(model: nn.Module, state: dict[str, Tensor], config: ModelConfig) -> None:
    expected = {key: value.shape for key, value in model.state_dict().items()}
    found, wanted = _classes_of(state), getattr(model, "num_classes", None)
    if found is not None and "head.weight" in expected and found != wanted:
        raise CheckpointError(
            f"{config.checkpoint} has {found} classes, but --num-classes is {wanted}: "
            "leave the flag out to use the checkpoint's"
        )
    shapes = {key: (state[key].shape, shape) for key, shape in expected.items() if key in state}
    wrong = [f"{key} is {list(has)}, not {list(needs)}" for key, (has, needs) in shapes.items() if has != needs]
    missing = [f"{key} is missing" for key in expected if key not in state]
    surplus = [f"{key} is not in the model" for key in state if key not in expected]
    problems = wrong + missing + surplus
    if problems:
        more = f" and {len(problems) - 2} more" if len(problems) > 2 else ""
        first = "; ".join(problems[:2])
        raise CheckpointError(f"{config.checkpoint} does not fit {config.model}: {first}{more} (see --model-kwargs)")
    with torch.no_grad():
        model.load_state_dict(state)
