"""Second moments of the inputs of linear layers and of the gradients at their outputs, streamed over a calibration pass.

The gradients are those of a random scalar of the model's outputs, whose second moment is the Fisher matrix: no labels.
They tell which tokens matter, and what an error at a layer's output costs at the output of the model. Without gradients, all
tokens weigh the same and all outputs cost the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from spaces.errors import DataError

# Least weight of a token, as a share of its image's mean weight: bounds the corrected weights where few tokens reach
# the output, as in the last block of a model that reads its class token alone.
TOKEN_FLOOR = 0.1
# Images per backward pass: its activations are kept, so memory grows with it.
_CHUNK = 16
_TINY = 1e-20  # weight of every token where all gradients vanish


@dataclass(frozen=True, kw_only=True)
class HeadMoments:
    """Moments of the queries and keys of one fused qkv linear, biases included, tokens weighted by their own gradients.

    Attributes:
        query: E[q q^T] per head, [heads, d, d].
        key: covariance of k about its image's mean, per head, [heads, d, d]: what remains of keys once a constant that
            the softmax over one image's tokens cannot see is taken away.
        unit: what a squared error of the logits costs per head, summed over an image, in nats, [heads]. None without gradients.
    """

    query: Tensor
    key: Tensor
    unit: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Moments of one layer's input x over all tokens of all images, float64 on the CPU.

    Tokens are weighted by the norm of the gradient at the layer's output.

    Attributes:
        mean: E[x], shape [d].
        covariance: E[(x - mean)(x - mean)^T], shape [d, d].
        metric: half the Fisher matrix of the layer's output, summed over an image, shape [m, m]: replacing the weight W by
            W + D costs about tr(metric D covariance D^T) nats of divergence (or of squared error of the features). None
            without gradients.
        heads: moments of queries and keys. None where they were not asked for.
        saliency: E|sum of x dL/dx over one group of inputs and one image's tokens|, with L the random scalar, [groups]. None
            where it was not asked for.
        count: number of tokens.
    """

    mean: Tensor
    covariance: Tensor
    metric: Tensor | None
    heads: HeadMoments | None
    saliency: Tensor | None
    count: int

    def second(self) -> Tensor:
        """E[x x^T], shape [d, d]."""
        return self.covariance + torch.outer(self.mean, self.mean)


class _Accumulator:
    """Running sums about a pilot mean (the first batch's), so that a large mean does not cancel small variances."""

    def __init__(self, heads: int, groups: int) -> None:
        self.count = self.images = 0
        self.heads = heads
        self.groups = groups
        self.sums: dict[str, Tensor] = {}

    def add(self, x: Tensor, output: Tensor, gradient: Tensor | None) -> None:
        """Inputs [B, ..., d], outputs [B, ..., m] and the gradient at the outputs, of one batch."""
        x, output = (t.detach().reshape(t.shape[0], -1, t.shape[-1]).float() for t in (x, output))
        if self.count == 0:
            self.pilot = x.mean((0, 1))
        flat, weight = (x - self.pilot).flatten(0, 1), x.new_ones(x.shape[:2])
        if gradient is not None:
            gradient = gradient.detach().reshape(output.shape).float()
            weight = token_weights(gradient)
            self._sum(metric=gradient.flatten(0, 1).T @ gradient.flatten(0, 1))
        weighted = weight.flatten().unsqueeze(1) * flat
        self._sum(weight=weight.sum(), total=weighted.sum(0), outer=weighted.T @ flat)
        if self.heads:
            self._add_heads(output, torch.ones_like(output) if gradient is None else gradient)
        self.images += x.shape[0]
        self.count += flat.shape[0]

    def add_saliency(self, x: Tensor, gradient: Tensor) -> None:
        """Inputs [B, ..., d] of one batch, and the gradient at them."""
        products = (x.detach() * gradient).float().reshape(x.shape[0], -1, self.groups, x.shape[-1] // self.groups)
        self._sum(saliency=products.sum((1, 3)).abs().sum(0))

    def _add_heads(self, output: Tensor, gradient: Tensor) -> None:
        batch, tokens, _ = output.shape
        query, key, _ = output.reshape(batch, tokens, 3, self.heads, -1).permute(2, 3, 0, 1, 4)
        to_query, to_key, _ = gradient.reshape(batch, tokens, 3, self.heads, -1).permute(2, 3, 0, 1, 4)
        by_query, by_key = token_weights(to_query).unsqueeze(-1), token_weights(to_key).unsqueeze(-1)
        key = key - (by_key * key).sum(2, keepdim=True) / by_key.sum(2, keepdim=True)
        self._sum(
            queries=by_query.sum((1, 2, 3)),
            query=(by_query * query).flatten(1, 2).mT @ query.flatten(1, 2),
            keys=by_key.sum((1, 2, 3)),
            key=(by_key * key).flatten(1, 2).mT @ key.flatten(1, 2),
            energy=to_query.square().sum((1, 2, 3)),
        )

    def _sum(self, **terms: Tensor) -> None:
        for name, term in terms.items():
            wide = term.to(_wide(term), torch.float64)
            self.sums[name] = self.sums[name] + wide if name in self.sums else wide

    def moments(self) -> Moments:
        sums = {name: value.cpu() for name, value in self.sums.items()}
        offset = sums["total"] / sums["weight"]
        heads = None
        if self.heads:
            key = sums["key"] / sums["keys"].reshape(-1, 1, 1)
            variance = key.diagonal(dim1=1, dim2=2).sum(1).clamp_min(_TINY)
            heads = HeadMoments(
                query=sums["query"] / sums["queries"].reshape(-1, 1, 1),
                key=key,
                unit=sums["energy"] / (2 * self.images * variance) if "metric" in sums else None,
            )
        return Moments(
            mean=self.pilot.to(offset) + offset,
            covariance=sums["outer"] / sums["weight"] - torch.outer(offset, offset),
            metric=sums["metric"] / (2 * self.images) if "metric" in sums else None,
            heads=heads,
            saliency=sums["saliency"] / self.images if self.groups else None,
            count=self.count,
        )


def token_weights(gradient: Tensor) -> Tensor:
    """Weights of tokens: the norms of their gradients, with a floor. Shape [..., tokens, m] -> [..., tokens]."""
    norm = gradient.norm(dim=-1)
    return norm + TOKEN_FLOOR * norm.mean(-1, keepdim=True) + _TINY  # type: ignore[no-any-return]


def _wide(x: Tensor) -> torch.device:
    """The device itself, or the CPU where the device has no float64."""
    return torch.device("cpu") if x.device.type == "mps" else x.device


def collect(
    model: nn.Module,
    linears: Iterable[str],
    batches: Iterable[Tensor],
    heads: Mapping[str, int] | None = None,
    salient: Mapping[str, int] | None = None,
    gradients: bool = True,
) -> dict[str, Moments]:
    """Moments of the inputs of the named linear layers, and of the gradients at their outputs.

    Memory grows with the layers and with `_CHUNK` images, not with all images. Batch products are float32, sums float64.

    Args:
        model: dense model, put in evaluation mode; images are moved to the device of its parameters.
        linears: dotted names of `nn.Linear` modules; with none, no image is looked at.
        batches: images, each batch [B, C, H, W], normalised for the model.
        heads: number of heads of those of `linears` that are fused qkv layers and get `Moments.heads` too.
        salient: those that get `Moments.saliency` too -> number of equal groups of their inputs; needs gradients.
        gradients: weigh tokens and outputs by what they cost; without, one forward pass gives plain moments.

    Raises:
        DataError: no image, or an activation that is not finite.
    """
    names, heads, salient = list(linears), heads or {}, salient or {}
    assert gradients or not salient, "saliency is made of gradients"
    if not names:
        return {}
    device = next(model.parameters()).device
    accumulators = {name: _Accumulator(heads.get(name, 0), salient.get(name, 0)) for name in names}
    handles: list[RemovableHandle] = []
    generator = torch.Generator().manual_seed(0)
    was_training = model.training
    model.eval()
    try:
        for name in names:
            handles.append(model.get_submodule(name).register_forward_hook(partial(_observe, accumulators[name])))
        with torch.set_grad_enabled(gradients):
            for batch in batches:
                for chunk in batch.split(_CHUNK):  # type: ignore[no-untyped-call]
                    images = chunk.to(device).detach().requires_grad_(gradients)
                    if gradients:
                        probe = fisher_probe(model, images, generator)
                        torch.autograd.grad(probe, images)  # of the images: parameters get none
                    else:
                        model(images)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    if any(accumulator.count == 0 for accumulator in accumulators.values()):
        raise DataError("the calibration set holds no image")
    moments = {name: accumulator.moments() for name, accumulator in accumulators.items()}
    for name, entry in moments.items():
        if not all(bool(found.isfinite().all()) for found in (entry.covariance, entry.metric) if found is not None):
            raise DataError(
                f"activations of {name} are not finite on the calibration images: check the weights and the normalisation"
            )
    return moments


def outputs_of(model: nn.Module, images: Tensor) -> Tensor:
    """What closed-form errors are a change of: the logits [B, classes]; the features [B, ..., d] where there are no classes."""
    if getattr(model, "num_classes", 1) == 0 and hasattr(model, "forward_features"):
        return model.forward_features(images)  # type: ignore[operator, no-any-return]
    return model(images)  # type: ignore[no-any-return]


def has_classes(model: nn.Module) -> bool:
    """Whether a model's outputs are logits."""
    return bool(getattr(model, "num_classes", 0))


def fisher_probe(model: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
    """A random scalar of the outputs whose gradients have the Fisher matrix of the model as their second moment.

    The outputs z are the logits, with B B^T = diag(p) - p p^T, the Fisher matrix of p = softmax(z), and the scalar is
    (B e)^T z for normal e: what sampling labels gives on average, without its rare large gradients. A model without
    classes has its features for z, and B = 1.
    """
    outputs = outputs_of(model, images)
    shape = outputs.shape[1:]
    noise = torch.stack([torch.randn(shape, generator=generator) for _ in images]).to(outputs)  # the same in any batches
    if has_classes(model):
        p = outputs.detach().softmax(-1)
        noise = p.sqrt() * noise
        noise = noise - p * noise.sum(-1, keepdim=True)
    return (noise * outputs).sum()


def _observe(accumulator: _Accumulator, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    x, y = inputs[0].detach(), output.detach()
    if not output.requires_grad:
        accumulator.add(x, y, None)
        return
    output.register_hook(lambda gradient: accumulator.add(x, y, gradient))  # type: ignore[no-untyped-call]
    if accumulator.groups:
        inputs[0].register_hook(lambda gradient: accumulator.add_saliency(x, gradient))  # type: ignore[no-untyped-call]
