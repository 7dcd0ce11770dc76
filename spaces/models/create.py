"""The dense model: created by timm, filled from timm's weights or from the user's checkpoint, with its preprocessing."""

import difflib
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from spaces.errors import CheckpointError, ModelError, first_line, printable, shown
from spaces.models.arguments import argument_problem, tupled
from spaces.models.config import ModelConfig
from spaces.models.hub import quick_hub, why_unreachable
from spaces.models.misfit import misfit, value_problem
from spaces.models.preprocessing import preprocessing_problem
from spaces.models.state_dicts import find_weights
from spaces.models.timm_folder import recipe_of, settled, weights_path
from spaces.models.weight_files import read_weights

__all__ = ["ModelConfig", "check_known", "create_model", "input_size", "instantiate", "preprocessing", "weights_of"]


def create_model(config: ModelConfig) -> nn.Module:
    """The dense model on the CPU, in evaluation mode.

    Its preprocessing is in `model.pretrained_cfg`, and the names of its classes, as label_names, where its folder has them.

    Raises:
        ModelError: unknown name (with near ones), or arguments that timm refuses.
        CheckpointError: the weights are missing, corrupt, pickled, or of another model.
    """
    config = settled(config)
    loaded = _load(config) if config.checkpoint else None
    classes = config.num_classes if loaded is None else loaded.classes
    arguments = {**config.model_kwargs, **({} if classes is None else {"num_classes": classes})}
    model = instantiate(config.model, arguments, pretrained=config.pretrained and loaded is None)
    if loaded is not None:
        with torch.no_grad():
            model.load_state_dict(loaded.tensors)
    model.pretrained_cfg = {**getattr(model, "pretrained_cfg", {}), **_known(config, model)}  # type: ignore[assignment]
    model._weights_from = _without_checkpoint(model, config) if loaded is None else loaded.text  # type: ignore[assignment]
    return model.eval()


def weights_of(model: nn.Module) -> str:
    """Which weights `create_model` gave a model, and what it left aside, in a line."""
    return str(getattr(model, "_weights_from", "unknown"))


def instantiate(name: str, arguments: dict[str, Any], pretrained: bool = False) -> nn.Module:
    """`timm.create_model` with errors that say what to do.

    Raises:
        ModelError: unknown name, or arguments that timm refuses.
    """
    check_known(name)
    with quick_hub() if pretrained else nullcontext():
        try:
            arguments = tupled(arguments)
            model = timm.create_model(name, pretrained=pretrained, **arguments)
        except Exception as error:  # timm, the hub and torch raise what they like here; all of it means the same to the user
            what = "with its pretrained weights " if pretrained else ""
            absent = why_unreachable() if pretrained and isinstance(error, OSError) else None
            reason = absent or printable(first_line(error)[:200])
            raise ModelError(f"timm cannot create {name!r} {what}from {shown(arguments)}: {reason}") from error
    assert isinstance(model, nn.Module)
    if problem := argument_problem(type(model), arguments):
        raise ModelError(f"{name} cannot be made from {shown(arguments)}: {problem}")
    return model


def check_known(name: str) -> None:
    """Raise unless timm has a model of this name.

    Raises:
        ModelError: it has none; some of near names are told.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists the known ones"
        if "/" in name or Path(name).is_dir():
            hint = f"local-dir:{name} is what save_for_hf wrote in a folder, hf-hub:{name} what is on the hub"
        raise ModelError(f"timm has no model {name!r}: {hint}")


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
    options = {"interpolation": config.interpolation, "crop_pct": config.crop_pct, "crop_mode": config.crop_mode}
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


@dataclass(frozen=True)
class _Loaded:
    """A checkpoint's tensors, every one of the model's name, its shape and a value; its classes; what was taken, in words."""

    tensors: dict[str, Tensor]
    classes: int | None
    text: str


def _load(config: ModelConfig) -> _Loaded:
    assert config.checkpoint is not None
    content, path = read_weights(weights_path(config.checkpoint))
    skeleton = _skeleton(config, config.num_classes)
    heads = _classifiers(skeleton)
    found = find_weights(content, skeleton.state_dict(), heads)
    if found is None:
        raise CheckpointError(f"{path} holds no tensors with names")
    layers = [tensor for name in heads if (tensor := found.tensors.get(f"{name}.weight")) is not None and tensor.ndim]
    classes = len(layers[0]) if layers else config.num_classes
    if config.num_classes is not None and classes != config.num_classes:
        raise CheckpointError(
            f"{path} has {classes} classes, but --num-classes is {config.num_classes}: "
            "leave the flag out to use the checkpoint's"
        )
    expected = (skeleton if (classes or None) == config.num_classes else _skeleton(config, classes or None)).state_dict()
    patches = getattr(getattr(skeleton, "patch_embed", None), "num_patches", 0)
    problem = misfit(found.tensors, expected, config.model, patches) or value_problem(found.tensors, expected)
    if problem is not None:
        raise CheckpointError(f"{path} {problem}{f' (from it: {found.source})' if found.source else ''}")
    return _Loaded(found.tensors, classes, "; ".join(filter(None, (printable(str(path)), found.text))))


def _skeleton(config: ModelConfig, classes: int | None) -> nn.Module:
    """The model's names and shapes, without memory for weights where its code allows that."""
    arguments = {**config.model_kwargs, **({} if classes is None else {"num_classes": classes})}
    try:
        with torch.device("meta"):
            return instantiate(config.model, arguments)
    except ModelError:  # some read values while they are made; and what the user has to put right is the same then
        return instantiate(config.model, arguments)


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    """Names of the last layers."""
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _without_checkpoint(model: nn.Module, config: ModelConfig) -> str:
    """Which weights a model has that was given no checkpoint."""
    if not config.pretrained:
        return "random numbers (neither --pretrained nor --checkpoint was given)"
    known, classes = model.pretrained_cfg.get("num_classes"), getattr(model, "num_classes", None)  # type: ignore[union-attr, operator]
    head = "" if known == classes else f", with a random head of {classes} classes"
    return f"timm's pretrained ones of {config.model}{head}"


def _known(config: ModelConfig, model: nn.Module) -> dict[str, Any]:
    """What the options and the model's folder say of its preprocessing and its classes."""
    names = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
    known = {name: value for name in names if (value := getattr(config, name))}
    recipe = recipe_of(config.checkpoint) if config.checkpoint else None
    labels = recipe.label_names if recipe is not None else None
    return {**known, "label_names": list(labels)} if labels and len(labels) == getattr(model, "num_classes", None) else known
