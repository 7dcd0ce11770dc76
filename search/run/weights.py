"""Weights of the trials on the front, kept in front/ of the run; all others are dropped."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from search.layout import WEIGHTS, weights_of


def keep_weights(directory: Path, numbers: Iterable[int], kept: Sequence[int], limit: float | None = None) -> None:
    """Move the weights of the kept trials to front/ and remove all others.

    A trial whose weights are gone keeps its score; they are made again when it is exported.

    Args:
        directory: of the run.
        numbers: of all finished trials.
        kept: numbers of those whose weights are wanted, from the most wanted to the least.
        limit: bytes that front/ may hold; the least wanted are dropped first.
    """
    wanted = set(kept)
    for number in numbers:
        fresh, stored = directory / "trials" / f"{number:04d}" / WEIGHTS, weights_of(directory, number)
        if number in wanted and fresh.exists():
            stored.parent.mkdir(exist_ok=True)
            fresh.replace(stored)
        elif number not in wanted:
            fresh.unlink(missing_ok=True)
            stored.unlink(missing_ok=True)
    if limit is not None:
        _drop_beyond(directory, kept, limit)


def _drop_beyond(directory: Path, kept: Sequence[int], limit: float) -> None:
    held = 0
    for path in (weights_of(directory, number) for number in kept):
        held += path.stat().st_size if path.exists() else 0
        if held > limit:
            path.unlink(missing_ok=True)


def read_weights(path: Path, model: nn.Module) -> dict[str, Tensor] | None:
    """Weights of a model by name; None where they are not there, have left the front at this moment, or are damaged."""
    try:
        state: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError):
        return None
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    fits = {name: tensor.shape for name, tensor in state.items()} == shapes
    return state if fits and all(bool(tensor.isfinite().all()) for tensor in state.values()) else None
