"""Torch-Pruning (Fang et al. 2023) on a timm vision transformer: the ready-made way to a model under a budget.

Set up as its own example for timm's transformers is: group Taylor importance, narrower heads, and attention with a forward that
does not take its widths from the input. Only benchmarks/throughput.py needs it: pip install torch-pruning
"""

import copy
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from naive import count_macs
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
ROUND = 2  # widths are multiples of this, as in the example
BISECTIONS = 7

# Variant -> options of the pruner, and whether the residual stream keeps its width. "isomorphic" is Fang et al. 2024.
VARIANTS: dict[str, tuple[Mapping[str, Any], bool]] = {
    "Taylor, uniform": ({}, False),
    "Taylor, bottleneck": ({}, True),
    "Taylor, isomorphic": ({"global_pruning": True, "isomorphic": True, "max_pruning_ratio": 0.9}, False),
    "L2, bottleneck": ({"importance": "GroupMagnitudeImportance"}, True),
}


def library() -> Any:
    """The package.

    Raises:
        SystemExit: it is not installed.
    """
    try:
        return importlib.import_module("torch_pruning")
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}: the part budget needs Torch-Pruning: pip install torch-pruning") from error


def pruned(dense: nn.Module, variant: str, batches: Sequence[Batch], budget: float) -> nn.Module:
    """A copy with at most a share of the MACs, by bisection of the pruning ratio.

    Args:
        dense: the model, on its device.
        variant: a name of `VARIANTS`.
        batches: training images [B, C, H, W] and labels [B], for the Taylor importance.
        budget: in (0, 1).
    """
    limit, low, high, found = budget * count_macs(dense), 0.0, 0.95, None
    for _ in range(BISECTIONS):
        ratio = (low + high) / 2
        model = prune(dense, variant, batches, ratio)
        if count_macs(model) <= limit:
            found, high = model, ratio
        else:
            low = ratio
    assert found is not None, f"{variant} reaches no {budget:.0%}"
    return found


def prune(dense: nn.Module, variant: str, batches: Sequence[Batch], ratio: float) -> nn.Module:
    """A copy without this share of its channels."""
    tp, (options, bottleneck) = library(), VARIANTS[variant]
    options = dict(options)
    model = patched(copy.deepcopy(dense))
    attentions = [block.attn for block in model.blocks]  # type: ignore[union-attr]
    ignored = [model.head, *(block.mlp.fc2 for block in model.blocks if bottleneck)]  # type: ignore[union-attr]
    importance = getattr(tp.importance, options.pop("importance", "GroupTaylorImportance"))()
    pruner = tp.pruner.BasePruner(
        model, batches[0][0][:1], importance=importance, pruning_ratio=ratio, ignored_layers=ignored, round_to=ROUND,
        num_heads={attention.qkv: attention.num_heads for attention in attentions}, prune_head_dims=True,
        in_channel_groups={}, out_channel_groups={}, **options,
    )  # fmt: skip
    for images, labels in batches:
        (F.cross_entropy(model(images), labels) / len(batches)).backward()  # type: ignore[no-untyped-call]
    pruner.step()
    model.zero_grad()
    for attention in attentions:
        attention.num_heads = pruner.num_heads[attention.qkv]
        attention.head_dim = attention.qkv.out_features // (3 * attention.num_heads)
    return model


def patched(model: nn.Module) -> nn.Module:
    """The model, whose attentions may have any width; their scale stays the dense one."""
    for block in model.blocks:  # type: ignore[union-attr]
        block.attn.forward = forward.__get__(block.attn)
    return model


def forward(attention: Any, x: Tensor, **options: Any) -> Tensor:
    """Of timm's `Attention`, [B, N, C] -> [B, N, C']."""
    batch, tokens, _ = x.shape
    qkv = attention.qkv(x).reshape(batch, tokens, 3, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.unbind(0)
    attended = F.scaled_dot_product_attention(query, key, value, scale=attention.scale)
    projected: Tensor = attention.proj(attended.transpose(1, 2).reshape(batch, tokens, -1))
    return projected
