"""Small vision transformers whose patch tokens become fewer, for the tests of tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from local_folders import uneven
from local_vits import KINDS, MakeVit
from torch import Tensor, nn

from spaces.tokens.structure import reads_prefix_alone, reduce_tokens
from spaces.vit import describe, resize

PATCHES = 16
ALL_KEPT = (16, 16, 16)
# What tests call them -> kind of model, space that it is cut in ("" for none), and further options.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "class token": ("plain", "", {}),
    "distilled": ("distilled", "", {}),
    "layer-scale": ("layer-scale", "", {}),
    "registers": ("registers, layer-scale", "", {}),
    "averaged": ("no class token", "", {}),
    "q/k norm": ("q/k norm", "", {}),
    "no qkv bias": ("no qkv bias", "", {}),
    "no classes": ("plain", "", {"num_classes": 0}),
    "contracted": ("plain", "contract", {}),
    "low-rank": ("plain", "low-rank", {}),
    "selected inputs": ("plain", "gated", {}),
    "low-rank-sparse": ("plain", "low-rank-sparse", {}),
}


def model_of(make_vit: MakeVit, name: str, **more: Any) -> nn.Module:
    """A model of three blocks, cut unevenly if it is one that is cut."""
    kind, space, options = MODELS[name]
    model = make_vit(**{"depth": 3, **KINDS[kind], **options, **more})
    if space:
        found = describe(model, space, multiple=4)
        resize(model, found, uneven(found, ALL_KEPT))
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name_, parameter in model.blocks.named_parameters():  # type: ignore[union-attr]
                if parameter.ndim == 2:
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
                elif "norm" not in name_:
                    parameter.zero_()
    return model.eval()


def schedule_of(model: nn.Module) -> tuple[int, ...]:
    """One that merges an odd and an even number of tokens, and has the tail where it can."""
    return (13, 8, 0 if reads_prefix_alone(model) else 7)


def reduced(model: nn.Module, counts: Sequence[int]) -> nn.Module:
    """The same model with a schedule."""
    reduce_tokens(model, counts)
    return model


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(images)
    return found


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())
