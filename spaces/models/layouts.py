"""Layouts of other libraries' vision transformers: recognised by their names, and put into timm's where that is known."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# Names, within any prefix, and what they are in timm; the last three of the second are one layer there.
_TORCHVISION = (
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_1\.", r"blocks.\1.norm1."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_2\.", r"blocks.\1.norm2."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_", r"blocks.\1.attn.qkv."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.", r"blocks.\1.mlp.fc1."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.", r"blocks.\1.mlp.fc2."),
    (r"encoder\.pos_embedding$", "pos_embed"),
    (r"encoder\.ln\.", "norm."),
    (r"class_token$", "cls_token"),
    (r"conv_proj\.", "patch_embed.proj."),
    (r"heads\.head\.", "head."),
)
_TRANSFORMERS = (
    (r"encoder\.layer\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
    (r"encoder\.layer\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
    (r"encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
    (r"embeddings\.position_embeddings$", "pos_embed"),
    (r"embeddings\.cls_token$", "cls_token"),
    (r"embeddings\.distillation_token$", "dist_token"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"layernorm\.", "norm."),
    (r"(?:cls_)?classifier\.", "head."),
    (r"distillation_classifier\.", "head_dist."),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.query\.", r"blocks.\1.attn.qkv.0."),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.key\.", r"blocks.\1.attn.qkv.1."),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.value\.", r"blocks.\1.attn.qkv.2."),
)
_PART = re.compile(r"\.qkv\.[012]\.")
# Whose layout, a name that it alone has, and its names.
_KNOWN = (
    ("torchvision", re.compile(r"encoder\.layers\.encoder_layer_0\.self_attention\.in_proj_weight$"), _TORCHVISION),
    ("Hugging Face transformers", re.compile(r"encoder\.layer\.0\.layernorm_before\.weight$"), _TRANSFORMERS),
)

# Layouts that are named in messages: a name that only they have, within any prefix.
_FOREIGN = {
    "Hugging Face transformers": r"embeddings\.patch_embeddings\.|encoder\.layer\.\d+\.attention\.|\.attention\.q_proj\.",
    "JAX": r"Transformer/encoderblock|encoderblock_\d+",
    "OpenAI's or OpenCLIP's CLIP": r"visual\.(?:conv1|transformer)|transformer\.resblocks\.",
    "torchvision": r"encoder_layer_\d+|conv_proj\.",
}


def translated(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """A state dict by timm's names, and whose layout it had, where that is known for a plain ViT; else as it is, and ''."""
    for layout, sign, names in _KNOWN:
        if any(map(sign.search, tensors)):
            return _joined({_renamed(key, names): tensor for key, tensor in tensors.items()}), layout
    return tensors, ""


def foreign_layout(tensors: Mapping[str, Tensor]) -> str | None:
    """Whose layout a state dict has, if it is a known one that is not timm's."""
    return next((name for name, pattern in _FOREIGN.items() if any(re.search(pattern, key) for key in tensors)), None)


def _renamed(key: str, names: tuple[tuple[str, str], ...]) -> str:
    for pattern, name in names:
        key = re.sub(rf"(?<![^.]){pattern}", name, key)
    return key


def _joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values, in this order, as the one layer that timm has."""
    parts: dict[str, list[Tensor]] = {}
    for key in sorted(tensors):
        parts.setdefault(_PART.sub(".qkv.", key), []).append(tensors[key])
    return {key: found[0] if len(found) == 1 else torch.cat(found) for key, found in parts.items() if _is_whole(found)}


def _is_whole(parts: list[Tensor]) -> bool:
    """Whether they are one tensor, or three that can become one."""
    plain = all(part.ndim and part.layout == torch.strided and not part.is_meta and not part.is_quantized for part in parts)
    return len(parts) == 1 or (len(parts) == 3 and plain and len({(part.dtype, part.shape[1:]) for part in parts}) == 1)
