"""Layouts of other libraries' vision transformers: recognised by their names, and put into timm's where that is known."""

import re
from collections.abc import Mapping

from torch import Tensor

# torchvision's names, within any prefix, and what they are in timm.
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
_IN_TORCHVISION = re.compile(r"encoder\.layers\.encoder_layer_0\.self_attention\.in_proj_weight$")

# Layouts that are named in messages: a name that only they have, within any prefix.
_FOREIGN = {
    "Hugging Face transformers": r"embeddings\.patch_embeddings\.|encoder\.layer\.\d+\.attention\.|\.attention\.q_proj\.",
    "JAX": r"Transformer/encoderblock|encoderblock_\d+",
    "OpenAI's or OpenCLIP's CLIP": r"visual\.(?:conv1|transformer)|transformer\.resblocks\.",
    "torchvision": r"encoder_layer_\d+|conv_proj\.",
}


def translated(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """A state dict by timm's names, and whose layout it had: torchvision's VisionTransformer, or '' as it was."""
    if not any(map(_IN_TORCHVISION.search, tensors)):
        return tensors, ""
    return {_renamed(key): tensor for key, tensor in tensors.items()}, "torchvision"


def foreign_layout(tensors: Mapping[str, Tensor]) -> str | None:
    """Whose layout a state dict has, if it is a known one that is not timm's."""
    return next((name for name, pattern in _FOREIGN.items() if any(re.search(pattern, key) for key in tensors)), None)


def _renamed(key: str) -> str:
    for pattern, name in _TORCHVISION:
        key = re.sub(rf"(?<![^.]){pattern}", name, key)
    return key
