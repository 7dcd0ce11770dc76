"""What timm.models.save_for_hf wrote, in a folder or on the hub: the model that config.json describes, and its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from timm import is_model

from spaces.errors import CheckpointError, CompressionError, first_line, shown
from spaces.models.arguments import checked_arguments
from spaces.models.config import ModelConfig
from spaces.models.hub import first_of_hub
from spaces.models.places import CONFIG, HUB, checkpoint_of, is_named, unnamed
from spaces.models.weight_files import WEIGHT_FILES
from spaces.schema import read_json

_PREPROCESSING = ("mean", "std", "interpolation", "crop_pct", "crop_mode")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What config.json of a folder says of its model.

    Attributes:
        architecture: timm model name.
        model_args: of timm.create_model, without the number of classes, which the weights tell.
        preprocessing: mean, std, interpolation, crop_pct and crop_mode, as far as they are there.
        label_names: of the classes, in the order of the outputs; None if they are not there.
    """

    architecture: str
    model_args: dict[str, Any]
    preprocessing: dict[str, Any]
    label_names: tuple[str, ...] | None


def named(config: ModelConfig) -> ModelConfig:
    """`config` with timm's name of the architecture, where a folder or a repository stands for it.

    Raises:
        ModelError: no model is named, or two places for its weights.
        CheckpointError: the folder does not describe a model.
    """
    checkpoint = checkpoint_of(config)
    if is_named(config):
        return replace(config, checkpoint=checkpoint)
    recipe = recipe_of(checkpoint) if checkpoint else None
    if recipe is None:
        raise unnamed(checkpoint)
    return replace(config, model=recipe.architecture, checkpoint=checkpoint)


def settled(config: ModelConfig) -> ModelConfig:
    """`config` with all that its folder says of the model, where it does not say otherwise itself.

    Raises:
        ModelError: as `named`.
        CheckpointError: the folder is of another model.
    """
    config = named(config)
    recipe = recipe_of(config.checkpoint) if config.checkpoint else None
    if recipe is None:
        return config
    if recipe.architecture.partition(".")[0] != config.model.partition(".")[0]:
        raise CheckpointError(f"{config.checkpoint} holds {recipe.architecture}, not {config.model}: leave --model out")
    given = {name: value for name in _PREPROCESSING if (value := getattr(config, name)) is not None}
    try:
        return replace(config, model_kwargs={**recipe.model_args, **config.model_kwargs}, **{**recipe.preprocessing, **given})
    except (CompressionError, TypeError) as error:
        raise CheckpointError(f"{CONFIG} of {config.checkpoint} is damaged: {error}") from error


def weights_path(checkpoint: str) -> Path:
    """Where the weights of a checkpoint are: a file or a folder; downloaded if they are on the hub."""
    if checkpoint.startswith(HUB):
        return first_of_hub(checkpoint.partition(":")[2], WEIGHT_FILES)
    return Path(checkpoint)


def recipe_of(checkpoint: str) -> Recipe | None:
    """What the folder or the repository says of its model; None for a file, or a folder that does not name its architecture.

    Raises:
        CheckpointError: config.json cannot be read, or describes a model that timm does not know.
    """
    if checkpoint.startswith(HUB):
        path = first_of_hub(checkpoint.partition(":")[2], (CONFIG,))
    else:
        path = Path(checkpoint) / CONFIG
        if not path.is_file():
            return None
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
    return _parsed(path, content)


def _parsed(path: Path, content: Any) -> Recipe | None:
    if not isinstance(content, dict) or "architecture" not in content:
        return None  # of another library, or of a training script
    if "allocation" in content:
        raise CheckpointError(f"{path} is of a model that was compressed already: a search begins with a dense one")
    architecture = content["architecture"]
    if not isinstance(architecture, str) or not is_model(architecture):
        raise CheckpointError(f"{path} is of an architecture that timm does not know: {shown(architecture)}")
    known = content.get("pretrained_cfg", content)
    arguments = content.get("model_args") or {}
    if not isinstance(known, dict) or not isinstance(arguments, dict):
        raise CheckpointError(f"{path} is damaged: pretrained_cfg and model_args must hold names and values")
    try:
        arguments = checked_arguments({name: value for name, value in arguments.items() if name != "num_classes"})
    except CompressionError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return Recipe(
        architecture=architecture,
        model_args=arguments,
        preprocessing=_preprocessing(path, known),
        label_names=_labels({**known, **content}),
    )


def _preprocessing(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: known[name] for name in _PREPROCESSING if known.get(name) is not None}
    for name, value in found.items():
        values = value if isinstance(value, list) else [value]
        kind = str if name in ("interpolation", "crop_mode") else (int, float)
        if isinstance(value, list) != (name in ("mean", "std")) or not all(isinstance(entry, kind) for entry in values):
            raise CheckpointError(f"{path} is damaged: {name} cannot be {shown(value)}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def _labels(content: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names in the order of the outputs, from a list or a mapping from their number."""
    names = content.get("label_names") or content.get("labels")
    if isinstance(names, dict):
        numbers = sorted((key for key in names if str(key).isdigit()), key=int)
        names = [names[key] for key in numbers] if [int(key) for key in numbers] == list(range(len(names))) else None
    return tuple(map(str, names)) if isinstance(names, list) and names else None
