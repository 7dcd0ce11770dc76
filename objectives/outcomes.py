"""What a model made of every single image of a split: what two models are compared by, pair by pair."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from spaces.errors import CheckpointError
from spaces.tensors import save_tensors

_LARGEST = 60000.0  # of what is kept: within float16


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Figures of one model on every image of a split, in the order of the split, [images] each.

    Attributes:
        wrong: whether its answer is not the label.
        cross_entropy: of the label, in nats.
        kl: divergence from the dense model's class probabilities, in nats; None without them.
    """

    wrong: Tensor
    cross_entropy: Tensor
    kl: Tensor | None = None

    def at(self, places: Tensor | slice) -> "Outcomes":
        """Those of some of the images, by their places in the split."""
        return Outcomes(self.wrong[places], self.cross_entropy[places], None if self.kl is None else self.kl[places])

    def save(self, path: Path) -> None:
        """Write them atomically (safetensors): a byte an image for the answers, two for each of the others."""
        kept = {"cross_entropy": self.cross_entropy, **({} if self.kl is None else {"kl": self.kl})}
        halved = {name: values.clamp(max=_LARGEST).half() for name, values in kept.items()}
        save_tensors(path, {"wrong": self.wrong.to(torch.uint8), **halved})

    @classmethod
    def load(cls, path: Path) -> "Outcomes":
        """Inverse of `save`, to the three digits of its float16.

        Raises:
            CheckpointError: the file is missing or unreadable.
        """
        try:
            found = load_file(path)
            wrong, kl = found["wrong"].bool(), found.get("kl")
            outcomes = cls(wrong, found["cross_entropy"].float(), None if kl is None else kl.float())
            if any(values.shape != wrong.shape or wrong.ndim != 1 for values in found.values()):
                raise ValueError("its arrays are not of one length")
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(f"outcomes {path} cannot be read ({error})") from error
        return outcomes


def outcomes_of(logits: Tensor, labels: Tensor, dense: Tensor | None = None) -> Outcomes:
    """Outcomes of one batch.

    Args:
        logits: or log-probabilities, [B, classes] float32.
        labels: [B].
        dense: the dense model's log-probabilities, [B, classes].
    """
    log_q = F.log_softmax(logits, dim=-1)
    kl = None if dense is None else F.kl_div(log_q, dense, reduction="none", log_target=True).sum(-1)
    return Outcomes(logits.argmax(-1) != labels, F.nll_loss(log_q, labels, reduction="none"), kl)


def joined(parts: list[Outcomes]) -> Outcomes:
    """Outcomes of several batches as one, in their order."""
    kl = [part.kl for part in parts if part.kl is not None]
    return Outcomes(
        torch.cat([part.wrong for part in parts]),
        torch.cat([part.cross_entropy for part in parts]),
        torch.cat(kl) if len(kl) == len(parts) else None,
    )
