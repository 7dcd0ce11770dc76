"""Kinds of small vision transformers for the tests of the spaces, and what these tests ask of a model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spaces.allocation import Allocation
from spaces.factors import Factors
from spaces.sites import Site, Space
from spaces.vit import describe

MakeVit = Callable[..., nn.Module]
HEADS = 4  # of width 8, in a model of width 32

# What tests call them -> options of the fixture `make_vit`.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "distilled": {"name": "deit_tiny_distilled_patch16_224"},
    "layer-scale": {"name": "deit3_small_patch16_224"},
    "registers, layer-scale": {"name": "vit_small_patch14_reg4_dinov2"},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "no qkv bias": {"qkv_bias": False},
    "no projection bias": {"proj_bias": False},
    "q/k norm": {"qk_norm": True},
    "attention pooling": {"class_token": False, "global_pool": "map"},
    "gated FFN": {"name": "vit_giant_patch14_dinov2", "mlp_ratio": 4.0},
    "rotary": {"name": "vit_small_patch16_dinov3"},
}


def with_four_heads(make_vit: MakeVit, kind: str = "plain") -> nn.Module:
    return make_vit(**{**KINDS[kind], "num_heads": HEADS})


def factors_of(model: nn.Module, images: Tensor, space: str = "full", **options: Any) -> Factors:
    return Factors.compute(model, describe(model, space, multiple=4), images.split(16), **options)  # type: ignore[no-untyped-call]


def site_of(space: Space, name: str) -> Site:
    return next(site for site in space.sites if site.name == name)


def widths(space: Space) -> list[Site]:
    """The sites of a space but those that leave branches out or merge tokens."""
    return [site for site in space.sites if site.kind != "branch"]


def cut(space: Space, pick: Callable[[Site], int]) -> Allocation:
    """Every site at the size that is picked; all branches and all tokens stay."""
    return space.identity().replace({site.name: pick(site) for site in widths(space)})


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def order_of(factors: Factors, block: int = 0) -> list[int]:
    """Heads of a block, the most important one first."""
    order: list[int] = factors.of(site_of(factors.space, f"blocks.{block}.attn.heads"))["order"].int().tolist()
    return order


def seen_at(model: nn.Module, name: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of a module, [images, tokens, width]."""
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda module, args, output: seen.extend([args[0], output]))
    with torch.no_grad():
        model(images)
    handle.remove()
    return seen[0], seen[1]


def relative_error(model: nn.Module, dense: nn.Module, images: Tensor, branch: str = "blocks.0.attn") -> float:
    """Squared error of a branch's outputs, as a share of their square."""
    (_, found), (_, wanted) = (seen_at(entry, branch, images) for entry in (model, dense))
    return float((found - wanted).square().sum() / wanted.square().sum())


def fused_and_unfused(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs with the fused attention kernel, and without it; the model stays without."""
    with torch.no_grad():
        fused = model(images)
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False  # type: ignore[assignment]
        return fused, model(images)
