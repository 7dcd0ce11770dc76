"""How wrong a model is: top-1 error, and its divergence from the dense model."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from objectives.runtime.distributed import ALONE, Group
from spaces.errors import CheckpointError, DataError, DivergedError
from spaces.files import write_json
from spaces.schema import NUMBER, SHARE, SIZE, WHOLE, Maybe, read_json
from spaces.tensors import save_tensors

_SCHEMA = {"error": SHARE, "kl": Maybe(NUMBER), "count": SIZE, "confusion": Maybe([(WHOLE, WHOLE, SIZE)])}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures of one model on one split.

    Attributes:
        error: top-1 error in [0, 1].
        kl: mean KL divergence from the dense model's class probabilities, in nats; None without them.
        count: number of images.
        confusion: (label, answer, images) of every such pair that occurs; None where it was not counted.
    """

    error: float
    kl: float | None
    count: int
    confusion: tuple[tuple[int, int, int], ...] | None = None

    def save(self, path: Path) -> None:
        """Write it atomically as JSON."""
        write_json(path, asdict(self))

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
            return cls(error=float(content["error"]), kl=content["kl"], count=content["count"], confusion=confusion)
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
    wrong, divergence, count = 0.0, 0.0, 0.0
    for index, (logits, labels) in enumerate(outputs):
        logits = logits.float().cpu()
        if not bool(logits.isfinite().all()):
            divergence = math.nan  # told to the other processes with the sums, so that all raise together
            break
        if int(labels.max()) >= logits.shape[1] or int(labels.min()) < 0:
            raise DataError(f"label {int(labels.max())} has no class in a model of {logits.shape[1]} classes")
        wrong += int((logits.argmax(-1) != labels).sum())
        if dense is not None:
            log_q = F.log_softmax(logits, dim=-1)
            divergence += float(F.kl_div(log_q, dense[index], reduction="sum", log_target=True))
        count += len(labels)
    wrong, divergence, count = group.total(wrong, divergence, count)
    if math.isnan(divergence):
        raise DivergedError("the model's outputs are not finite")
    if count == 0:
        raise DataError("no image to evaluate on")
    return Evaluation(error=wrong / count, kl=max(0.0, divergence / count) if dense is not None else None, count=int(count))


def confusion(outputs: Sequence[Tensor], labels: Sequence[Tensor]) -> tuple[tuple[int, int, int], ...]:
    """(label, answer, images) of every pair that occurs, in ascending order.

    Args:
        outputs: logits or log-probabilities of every batch, [B, classes].
        labels: of every batch, [B].
    """
    answers = torch.cat([logits.argmax(-1) for logits in outputs])
    pairs = Counter(zip(torch.cat(list(labels)).tolist(), answers.tolist(), strict=True))
    return tuple((label, answer, count) for (label, answer), count in sorted(pairs.items()))
