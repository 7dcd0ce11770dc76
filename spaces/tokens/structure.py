"""Placeholder until the module of this name is merged."""

from collections.abc import Sequence

from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn


def patch_tokens(model):
    return model.patch_embed.num_patches


def obstacle(model):
    if type(model) is not VisionTransformer or any(type(b) is not Block for b in model.blocks) or model.attn_pool is not None:
        return "no plain timm VisionTransformer"
    return None


def reads_prefix_alone(model):
    return model.num_classes > 0 and model.global_pool == "token"


def reduce_tokens(model: nn.Module, counts: Sequence[int]) -> None:
    if set(counts) != {patch_tokens(model)}:
        raise NotImplementedError


def merging_macs(model, prefix, entering, leaving):
    return 0
