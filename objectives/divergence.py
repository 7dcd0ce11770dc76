"""How far the outputs of a candidate are from the dense model's on some images."""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spaces.errors import DataError
from spaces.statistics import has_classes, outputs_of


class Reference:
    """The dense model on the images that candidates are compared with it on.

    Args:
        model: the dense model, on the device to measure on.
        batches: images, [B, C, H, W].
    """

    def __init__(self, model: nn.Module, batches: Iterable[Tensor]) -> None:
        self.device = next(model.parameters()).device
        self._model = model.eval()
        self._images = [batch.to(self.device) for batch in batches]
        self._classes = has_classes(model)
        with torch.inference_mode():
            self._outputs = [outputs_of(self._model, batch) for batch in self._images]
        self._entering: tuple[int, list[Tensor]] = (0, [])  # a block, and what enters it

    @property
    def count(self) -> int:
        """How many images there are."""
        return sum(map(len, self._images))

    def divergence(self, candidate: nn.Module, where: str, block: int = 0) -> float:
        """Mean divergence of a candidate, in nats; half the squared change of features in a model without classes.

        Args:
            candidate: a model of this dense one; it is of no use afterwards.
            where: what it is, for an error.
            block: its blocks before this one are those of the dense model, and are not run again. Quick where the block is
                that of the call before.

        Raises:
            DataError: outputs that are not finite.
        """
        candidate = candidate.to(self.device)
        with torch.inference_mode():
            if block:
                _resume(candidate, block, self._at(block))
            outputs = (outputs_of(candidate, batch) for batch in self._images)
            return divergence(outputs, self._outputs, self._classes, where)

    @property
    def constant(self) -> float:
        """Divergence of the best answer that is the same for all images: their mean."""
        outputs = torch.cat([output.float().cpu().double() for output in self._outputs])
        if not self._classes:
            return float((outputs - outputs.mean(0)).square().sum() / 2 / len(outputs))
        mean = (outputs.log_softmax(-1).logsumexp(0) - math.log(len(outputs))).expand_as(outputs)
        return float(F.kl_div(mean, outputs.log_softmax(-1), reduction="batchmean", log_target=True))

    def _at(self, block: int) -> list[Tensor]:
        """What enters a block of the dense model, for every batch."""
        if self._entering[0] != block:
            self._entering = (block, _entering(self._model, block, self._images))
        return self._entering[1]


def divergence(outputs: Iterable[Tensor], dense: Sequence[Tensor], classes: bool, where: str) -> float:
    """Mean divergence of outputs from the dense model's, over all images.

    Raises:
        DataError: outputs that are not finite.
    """
    total, count = 0.0, 0
    for found, expected in zip(outputs, dense, strict=True):
        found, expected = found.float().cpu().double(), expected.float().cpu().double()
        if classes:
            change = F.kl_div(found.log_softmax(-1), expected.log_softmax(-1), reduction="sum", log_target=True)
        else:
            change = (found - expected).square().sum() / 2
        total, count = total + float(change), count + len(found)
    if not math.isfinite(total):
        raise DataError(
            f"outputs with {where} are not finite on the calibration images: check the weights and the normalisation"
        )
    return total / count


class _Passed(nn.Module):
    """In place of a block before the one that a model is resumed at."""

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        return x


def _entering(model: nn.Module, block: int, images: Iterable[Tensor]) -> list[Tensor]:
    """What enters a block of the dense model, for every batch."""
    seen: list[Tensor] = []
    first = model.get_submodule(f"blocks.{block}")
    handle = first.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    try:
        for batch in images:
            model(batch)
    finally:
        handle.remove()
    return seen


def _resume(model: nn.Module, block: int, entering: Iterable[Tensor]) -> None:
    """Have the next forward passes of a model begin at a block, with what enters it: all before it is as in the dense model."""
    stored = iter(entering)
    for index in range(block):
        model.set_submodule(f"blocks.{index}", _Passed())
    first = model.get_submodule(f"blocks.{block}")
    first.register_forward_pre_hook(lambda module, arguments: (next(stored), *arguments[1:]))
