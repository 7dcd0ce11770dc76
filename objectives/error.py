"""How wrong a model is: top-1 error, and its divergence from the dense model."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from objectives.outcomes import Outcomes, joined, outcomes_of
from objectives.runtime.distributed import ALONE, Group
from spaces.errors import CheckpointError, DataError, DivergedError
from spaces.files import write_json
from spaces.schema import NUMBER, SHARE, SIZE, WHOLE, Maybe, read_json
from spaces.tensors import save_tensors

_SCHEMA = {
    "error": SHARE, "kl": Maybe(NUMBER), "count": SIZE, "cross_entropy": Maybe(NUMBER),
    "confusion": Maybe([(WHOLE, WHOLE, SIZE)]),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures of one model on one split.

    Attributes:
        error: top-1 error in [0, 1].
        kl: mean KL divergence from the dense model's class probabilities, in nats; None without them.
        count: number of images.
        cross_entropy: mean cross-entropy of the labels, in nats; None where it was not measured.
        confusion: (label, answer, images) of every such pair that occurs; None where it was not counted.
        outcomes: of every image; None where they were not kept.
    """

    error: float
    kl: float | None
    count: int
    cross_entropy: float | None = None
    confusion: tuple[tuple[int, int, int], ...] | None = None
    outcomes: Outcomes | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; without the single images."""
        return {name: getattr(self, name) for name in _SCHEMA}

    def save(self, path: Path) -> None:
        """Write it atomically as JSON."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> "Evaluation":
        """Inverse of `save`.

        Raises:
            CheckpointError: the file is unreadable.
        """
        try:
            content = read_json(path, _SCHEMA)
            pairs = content["confusion"]
            confusion = None if pairs is None else tuple((label, answer, images) for label, answer, images in pairs)
            return cls(**{**content, "error": float(content["error"]), "confusion": confusion})
        except (OSError, ValueError) as error:
            raise CheckpointError(f"figures {path} cannot be read ({error}): delete it to measure them again") from error


@torch.inference_mode()
def predict(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], parts: int = 1) -> list[Tensor]:
    """Log-probabilities of every batch, [B, classes] float32 on the CPU; batches pass in so many parts."""
    device = next(model.parameters()).device
    model.eval()
    return [F.log_softmax(_logits(model, images.to(device), parts).float(), dim=-1).cpu() for images, _ in batches]


def save_answers(path: Path, answers: Sequence[Tensor]) -> None:
    """Write what `predict` gave atomically, a tensor a batch."""
    save_tensors(path, {f"{index:06d}": batch for index, batch in enumerate(answers)})


def load_answers(path: Path, images: int | None) -> list[Tensor]:
    """Inverse of `save_answers`.

    Args:
        path: the file.
        images: how many it should have answers to; None where that is not known.

    Raises:
        CheckpointError: the file is unreadable, or its answers are to other images.
    """
    try:
        answers = [batch for _, batch in sorted(load_file(path).items())]
        if any(batch.ndim != 2 or batch.dtype != torch.float32 for batch in answers):
            raise ValueError("it holds other tensors than log-probabilities")
        if images is not None and (found := sum(map(len, answers))) != images:
            raise ValueError(f"it has answers to {found} images, not to {images}")
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"answers {path} cannot be read ({error}): delete the file to compute them again") from error
    return answers


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    dense: Sequence[Tensor] | None = None,
    parts: int = 1,
    group: Group = ALONE,
) -> Evaluation:
    """Error of `model`, put in evaluation mode.

    Args:
        model: on its device.
        batches: images [B, C, H, W] and labels [B].
        dense: `predict` of the dense model on the same batches.
        parts: how many every batch is split in, for as much less memory.
        group: the processes that measure this model, each on batches of its own; all get the figures of all batches.

    Raises:
        DataError: no image, or a label that the model has no class for.
        DivergedError: an output that is not finite, of whichever process.
    """
    device = next(model.parameters()).device
    model.eval()
    outputs = ((_logits(model, images.to(device, non_blocking=True), parts), labels) for images, labels in batches)
    return compare(outputs, dense, group)


def _logits(model: nn.Module, images: Tensor, parts: int) -> Tensor:
    return torch.cat([model(some) for some in images.chunk(parts)])


def compare(
    outputs: Iterable[tuple[Tensor, Tensor]], dense: Sequence[Tensor] | None = None, group: Group = ALONE
) -> Evaluation:
    """`evaluate` on outputs that are there already: logits or log-probabilities [B, classes], and labels [B]."""
    found, is_finite = list[Outcomes](), True
    for index, (logits, labels) in enumerate(outputs):
        logits = logits.float().cpu()
        is_finite = bool(logits.isfinite().all())
        if not is_finite:
            break  # told to the other processes, so that all raise together
        if int(labels.max()) >= logits.shape[1] or int(labels.min()) < 0:
            raise DataError(f"label {int(labels.max())} has no class in a model of {logits.shape[1]} classes")
        found.append(outcomes_of(logits, labels, None if dense is None else dense[index]))
    everywhere = group.gathered((found, is_finite))
    if not all(finite for _, finite in everywhere):
        raise DivergedError("the model's outputs are not finite")
    in_turn = [part for parts in zip_longest(*(parts for parts, _ in everywhere)) for part in parts if part is not None]
    if not in_turn:
        raise DataError("no image to evaluate on")
    return evaluation_of(joined(in_turn))


def evaluation_of(outcomes: Outcomes) -> Evaluation:
    """The figures of single images, put together."""
    wrong, kl = outcomes.wrong.double(), outcomes.kl
    return Evaluation(
        error=float(wrong.mean()),
        kl=None if kl is None else max(0.0, float(kl.double().mean())),
        count=len(wrong),
        cross_entropy=float(outcomes.cross_entropy.double().mean()),
        outcomes=outcomes,
    )


def confusion(outputs: Sequence[Tensor], labels: Sequence[Tensor]) -> tuple[tuple[int, int, int], ...]:
    """(label, answer, images) of every pair that occurs, in ascending order.

    Args:
        outputs: logits or log-probabilities of every batch, [B, classes].
        labels: of every batch, [B].
    """
    answers = torch.cat([logits.argmax(-1) for logits in outputs])
    pairs = Counter(zip(torch.cat(list(labels)).tolist(), answers.tolist(), strict=True))
    return tuple((label, answer, count) for (label, answer), count in sorted(pairs.items()))
