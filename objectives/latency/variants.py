"""Models to time: the structure of an allocation, with weights that nothing depends on."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spaces.allocation import Allocation
from spaces.sites import Space
from spaces.vit import resize


@dataclass(frozen=True)
class Variant:
    """A model to time.

    Attributes:
        allocation: that it has.
        tokens: how many patch tokens all of its blocks run on, the first ones; None for all. Its output means nothing then.
    """

    allocation: Allocation
    tokens: int | None = None


class FirstTokens(nn.Module):
    """Prefix tokens and the first patch tokens: [B, T, dim] -> [B, count, dim]."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.count]


def variant_of(dense: nn.Module, space: Space, variant: Variant, device: torch.device) -> nn.Module:
    """The dense model cut to an allocation, with its own weights where nothing is cut, and random ones elsewhere."""
    given = {id(tensor): tensor for tensor in (*dense.parameters(), *dense.buffers())}
    model = _with_same_weights(dense)
    resize(model, space, variant.allocation)
    if variant.tokens is not None:
        model.patch_drop = FirstTokens(prefix_of(dense) + variant.tokens)
    model.to(device)
    with torch.no_grad():
        for parameter in model.parameters():
            if id(parameter) not in given:  # uninitialised memory may hold numbers that a CPU is slow with
                parameter.normal_(std=0.02)
    return model


def prefix_of(model: nn.Module) -> int:
    """Tokens of a timm model that are none of patches."""
    count: int = model.num_prefix_tokens  # type: ignore[assignment]
    return count


def _with_same_weights(module: nn.Module) -> nn.Module:
    """Modules of its own, whose weights are those of `module`: copying them takes longer than timing a small model."""
    twin = copy.copy(module)
    children = {name: child and _with_same_weights(child) for name, child in module._modules.items()}
    twin.__dict__.update(_parameters=dict(module._parameters), _buffers=dict(module._buffers), _modules=children)
    return twin
