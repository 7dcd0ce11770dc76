"""Where the weights of a model are said to be: a path, local-dir:FOLDER or hf-hub:ORG/NAME; and whether something is there."""

from pathlib import Path

from spaces.errors import CheckpointError, ModelError
from spaces.models.config import ModelConfig

CONFIG = "config.json"  # of a folder that timm.models.save_for_hf wrote
HUB = ("hf-hub:", "hf_hub:")
_LOCAL = "local-dir:"


def source_of(name: str) -> str | None:
    """What stands behind local-dir: or hf-hub:, as a checkpoint; None for any other name."""
    prefix, colon, rest = name.partition(":")
    kind = f"{prefix.lower()}{colon}"
    if kind == _LOCAL:
        return str(Path(rest).expanduser())
    return f"{HUB[0]}{rest}" if kind in HUB else None


def checkpoint_of(config: ModelConfig) -> str | None:
    """The path or the repository of a model's weights, by whichever option it is named; None where none is.

    Raises:
        ModelError: two options name two.
    """
    source = source_of(config.model)
    if source is not None and config.checkpoint and _place(config.checkpoint) != _place(source):
        raise ModelError(f"two places for the weights, --model {config.model} and --checkpoint {config.checkpoint}: give one")
    return source or (config.checkpoint and (source_of(config.checkpoint) or config.checkpoint))


def check_place(config: ModelConfig) -> None:
    """Raise where no model is named or nothing is where its weights should be, before what reads models is imported.

    Raises:
        ModelError: nothing names a model, or the place that should.
        CheckpointError: nothing is where the weights of a named model should be.
    """
    checkpoint = checkpoint_of(config)
    if not checkpoint:
        if not is_named(config):
            raise unnamed(checkpoint)
    elif not checkpoint.startswith(HUB) and not Path(checkpoint).exists():
        raise no_checkpoint(Path(checkpoint)) if is_named(config) else unnamed(checkpoint)


def is_named(config: ModelConfig) -> bool:
    """Whether the options name an architecture of timm, and not a folder in its place."""
    return bool(config.model) and source_of(config.model) is None


def no_checkpoint(path: Path) -> CheckpointError:
    """What is told where no weights are."""
    return CheckpointError(f"no checkpoint at {path}")


def unnamed(checkpoint: str | None) -> ModelError:
    """Why no architecture is known, and how one is named."""
    known = "a name of timm.list_models(), local-dir:FOLDER or hf-hub:ORG/NAME"
    return ModelError(f"{_why_unnamed(checkpoint)}: give --model with {known}")


def _why_unnamed(checkpoint: str | None) -> str:
    if checkpoint is None:
        return "no model"
    if not checkpoint.startswith(HUB) and not Path(checkpoint).exists():
        return f"nothing is at {checkpoint}"
    return f"{checkpoint} has no {CONFIG} that says of which architecture of timm it is"


def _place(checkpoint: str) -> str:
    name = source_of(checkpoint) or checkpoint
    return name if name.startswith(HUB) else str(Path(name).resolve())
