"""A timm vision transformer in which patch tokens become fewer: whether it can, and the structure that a schedule gives it.

A schedule is how many patch tokens leave the attention of each block: (16, 16, 12, 0), say.
"""

from collections.abc import Sequence
from itertools import pairwise

from timm.layers import Attention as TimmAttention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from spaces.errors import AllocationError, ModelError
from spaces.modules import ContractedAttention
from spaces.tokens.blocks import ReducedBlock, ReducedBlocks

_MODELS = (VisionTransformer, VisionTransformerDistilled)  # not their subclasses, which may compute something else


def obstacle(model: nn.Module) -> str | None:
    """Why patch tokens of a timm model cannot be merged; None if they can."""
    name = type(model).__name__
    if type(model) not in _MODELS:
        return f"{name} is not timm's VisionTransformer: its positions or windows may depend on where tokens are"
    if getattr(model, "attn_pool", None) is not None:
        return "its output is pooled by attention over all patch tokens"
    if model.dynamic_img_size or not isinstance(getattr(model.patch_embed, "num_patches", None), int):
        return "it takes images of any size, so its number of patch tokens is not fixed"
    if not isinstance(model.patch_drop, nn.Identity):
        return "it drops patch tokens at random while it is trained"
    return _obstacle_of_blocks(model.blocks)


def _obstacle_of_blocks(blocks: object) -> str | None:
    if isinstance(blocks, ReducedBlocks):
        return "its tokens are merged already"
    if type(blocks) is not nn.Sequential or not len(blocks):
        return "it has no plain sequence of blocks"
    for index, block in enumerate(blocks):
        if type(block) is not Block:
            return f"blocks.{index} is a {type(block).__name__}, not timm's plain Block"
        if hasattr(block.attn, "num_heads") and type(block.attn) not in (TimmAttention, ContractedAttention):
            return f"blocks.{index}.attn is a {type(block.attn).__name__}, not timm's plain Attention"
    return None


def patch_tokens(model: nn.Module) -> int:
    """Number of patch tokens of an image, N.

    Raises:
        ModelError: tokens of the model cannot be merged.
    """
    if reason := obstacle(model):
        raise ModelError(f"tokens of {type(model).__name__} cannot be merged: {reason}")
    return model.patch_embed.num_patches  # type: ignore[union-attr,return-value]


def reads_prefix_alone(model: nn.Module) -> bool:
    """Whether the output of a timm model depends on the prefix tokens of its last block alone."""
    return bool(model.num_classes) and model.global_pool == "token"


def reduce_tokens(model: nn.Module, counts: Sequence[int]) -> None:
    """Give a model, dense or resized, a schedule of its patch tokens, in place.

    No weights are copied or made, and no name changes. A schedule that keeps all tokens leaves the model as it is.

    Args:
        model: a timm model, on any device.
        counts: number of patch tokens that leave the attention of each block.

    Raises:
        ModelError: tokens of the model cannot be merged.
        AllocationError: the counts are not a schedule of this model.
    """
    entering = patch_tokens(model)
    if problem := problem_of(model, counts):
        raise AllocationError(f"{tuple(counts)} is no schedule of {type(model).__name__}: {problem}")
    if all(count == entering for count in counts):
        return
    gives_back = not reads_prefix_alone(model)
    blocks: list[nn.Module] = []
    prefix: int = model.num_prefix_tokens  # type: ignore[assignment]
    for block, before, after in zip(model.blocks, (entering, *counts), counts, strict=False):  # type: ignore[arg-type]
        is_dense = after == entering
        blocks.append(block if is_dense else ReducedBlock(block, prefix, before, after, tracks=gives_back))
    model.blocks = ReducedBlocks(*blocks, prefix=prefix, gives_back=gives_back)


def problem_of(model: nn.Module, counts: Sequence[int]) -> str | None:
    """Why these are not the counts of a schedule of a model whose tokens can be merged; None if they are."""
    blocks, entering = len(model.blocks), patch_tokens(model)  # type: ignore[arg-type]
    if len(counts) != blocks:
        return f"it has {len(counts)} counts for {blocks} blocks"
    for index, (before, after) in enumerate(pairwise((entering, *counts))):
        if after == 0 and index == blocks - 1 and reads_prefix_alone(model):
            continue
        if not -(-before // 2) <= after <= before or after == 0:
            return f"of {before} patch tokens, block {index} may keep {-(-before // 2)} to {before}, not {after}"
    return None


def block_cost(entering: int, leaving: int, metric: int, dim: int) -> int:
    """MACs of matching and merging in one block, for one image; those of attention and FFN are not among them.

    Args:
        entering: patch tokens that come in.
        leaving: patch tokens that leave.
        metric: numbers that a token is compared by: the width of a head's keys.
        dim: width of a token.
    """
    merged = entering - leaving
    if merged == 0 or leaving == 0:
        return 0
    second = entering // 2
    return second * (entering - second) * metric + second * merged * dim
