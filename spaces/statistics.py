"""Second moments of the inputs of linear layers, and what the outputs depend on, streamed over a calibration pass."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
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
        saliency: E|sum of x dL/dx over one group of inputs and one image's tokens|, [groups]. None where not asked for.
        count: number of tokens.
    """

    mean: Tensor
    covariance: Tensor
    within: Tensor | None
    saliency: Tensor | None
    count: int

    def second(self) -> Tensor:
        """E[x x^T], shape [d, d]."""
        return self.covariance + torch.outer(self.mean, self.mean)


class _Accumulator:
    """Running sums about a pilot mean (the first batch's), so that a large mean does not cancel small variances."""

    def __init__(self, per_image: bool, groups: int | None) -> None:
        self.count = 0
        self.per_image = per_image
        self.groups = groups
        self.images = 0
        self.saliency = torch.zeros(groups or 0, dtype=torch.float64)

    def add_saliency(self, x: Tensor, gradient: Tensor) -> None:
        """Inputs of one batch, [B, tokens, d], and the loss's gradient with respect to them."""
        assert self.groups is not None
        products = (x.detach() * gradient).reshape(x.shape[0], -1, self.groups, x.shape[-1] // self.groups)
        self.saliency += products.sum((1, 3)).abs().sum(0).to("cpu", torch.float64)
        self.images += x.shape[0]

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
            saliency=None if self.groups is None else self.saliency / self.images,
            count=self.count,
        )


def _wide(x: Tensor) -> torch.device:
    """The device itself, or the CPU where the device has no float64."""
    return torch.device("cpu") if x.device.type == "mps" else x.device


def collect(
    model: nn.Module,
    linears: Iterable[str],
    batches: Iterable[Tensor],
    per_image: Collection[str] = (),
    salient: Mapping[str, int] | None = None,
) -> dict[str, Moments]:
    """Moments of the inputs of the named linear layers.

    Memory grows with the layers, not with the images. Batch products are float32, sums float64.

    Args:
        model: dense model, put in evaluation mode; images are moved to the device of its parameters.
        linears: dotted names of `nn.Linear` modules; with none, no image is looked at.
        batches: images, each batch [B, C, H, W], normalised for the model.
        per_image: those of `linears` that get `Moments.within` too.
        salient: those that get `Moments.saliency` too -> number of equal groups of their inputs.

    Raises:
        DataError: no image, or an activation that is not finite.
    """
    names, salient = list(linears), salient or {}
    if not names:
        return {}
    device = next(model.parameters()).device
    accumulators = {name: _Accumulator(name in per_image, salient.get(name)) for name in names}
    handles: list[RemovableHandle] = []
    was_training = model.training
    inputs: dict[str, Tensor] = {}
    model.eval()
    try:
        for name in names:
            hook = partial(_observe, accumulators[name], name, inputs if name in salient else None)
            handles.append(model.get_submodule(name).register_forward_pre_hook(hook))
        for batch in batches:
            with torch.set_grad_enabled(bool(salient)):
                outputs = model(batch.to(device))
                if salient:
                    _add_saliency(outputs, inputs, accumulators)
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


def _observe(
    accumulator: _Accumulator, name: str, kept: dict[str, Tensor] | None, module: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    if kept is not None:
        kept[name] = inputs[0]
    accumulator.add(inputs[0])


def _add_saliency(outputs: Tensor, inputs: dict[str, Tensor], accumulators: dict[str, _Accumulator]) -> None:
    """The loss is the log-likelihood of the model's own most likely class; of features, half their squared norm."""
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        loss = F.cross_entropy(outputs, outputs.argmax(-1), reduction="sum")
    else:
        loss = outputs.square().sum() / 2
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    for (name, x), gradient in zip(inputs.items(), gradients, strict=True):
        accumulators[name].add_saliency(x, gradient)
