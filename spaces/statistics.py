"""Second moments of the inputs of linear layers, streamed over a calibration pass."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from spaces.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Moments of one layer's input x over all tokens of all images, float64 on the CPU.

    Attributes:
        mean: E[x], shape [d].
        covariance: E[(x - mean)(x - mean)^T], shape [d, d].
        within: the same about each image's own mean, shape [d, d]: what remains of keys once a constant that the
            softmax over one image's tokens cannot see is taken away. None where it was not asked for.
        count: number of tokens.
    """

    mean: Tensor
    covariance: Tensor
    within: Tensor | None
    count: int

    def second(self) -> Tensor:
        """E[x x^T], shape [d, d]."""
        return self.covariance + torch.outer(self.mean, self.mean)


class _Accumulator:
    """Running sums about a pilot mean (the first batch's), so that a large mean does not cancel small variances."""

    def __init__(self, per_image: bool) -> None:
        self.count = 0
        self.per_image = per_image

    def add(self, x: Tensor) -> None:
        x = x.detach().reshape(x.shape[0], -1, x.shape[-1]).float()
        if self.count == 0:
            self.pilot = x.mean((0, 1))
            width, device = x.shape[-1], _wide(x)
            self.total = torch.zeros(width, dtype=torch.float64, device=device)
            self.outer = torch.zeros(width, width, dtype=torch.float64, device=device)
            self.between = torch.zeros_like(self.outer) if self.per_image else None
        centred = x - self.pilot
        flat = centred.flatten(0, 1)
        self.total += flat.sum(0).to(self.total)
        self.outer += (flat.T @ flat).to(self.outer)
        if self.between is not None:
            image_means = centred.mean(1)
            self.between += x.shape[1] * (image_means.T @ image_means).to(self.between)
        self.count += flat.shape[0]

    def moments(self) -> Moments:
        offset = self.total / self.count
        second = self.outer / self.count
        return Moments(
            mean=(self.pilot.to(offset) + offset).cpu(),
            covariance=(second - torch.outer(offset, offset)).cpu(),
            within=None if self.between is None else (second - self.between / self.count).cpu(),
            count=self.count,
        )


def _wide(x: Tensor) -> torch.device:
    """The device itself, or the CPU where the device has no float64."""
    return torch.device("cpu") if x.device.type == "mps" else x.device


@torch.inference_mode()
def collect(
    model: nn.Module, linears: Iterable[str], batches: Iterable[Tensor], per_image: Collection[str] = ()
) -> dict[str, Moments]:
    """Moments of the inputs of the named linear layers.

    Memory grows with the layers, not with the images. Batch products are float32, sums float64.

    Args:
        model: dense model, put in evaluation mode; images are moved to the device of its parameters.
        linears: dotted names of `nn.Linear` modules.
        batches: images, each batch [B, C, H, W], normalised for the model.
        per_image: those of `linears` that get `Moments.within` too.

    Raises:
        DataError: no image, or an activation that is not finite.
    """
    names = list(linears)
    device = next(model.parameters()).device
    accumulators = {name: _Accumulator(name in per_image) for name in names}
    handles: list[RemovableHandle] = []
    was_training = model.training
    model.eval()
    try:
        for name in names:
            handles.append(model.get_submodule(name).register_forward_pre_hook(partial(_observe, accumulators[name])))
        for batch in batches:
            model(batch.to(device))
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    if any(accumulator.count == 0 for accumulator in accumulators.values()):
        raise DataError("the calibration set holds no image")
    moments = {name: accumulator.moments() for name, accumulator in accumulators.items()}
    for name, entry in moments.items():
        if not bool(entry.covariance.isfinite().all()):
            raise DataError(
                f"activations of {name} are not finite on the calibration images: check the weights and the normalisation"
            )
    return moments


def _observe(accumulator: _Accumulator, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    accumulator.add(inputs[0])
