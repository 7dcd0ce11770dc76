"""The options of the built-in demo."""

from typing import Any

from objectives.data.config import DIGITS

# 202,186 parameters: 8x8 images in 16 patches.
_MODEL: dict[str, Any] = {
    "img_size": 8,
    "patch_size": 2,
    "in_chans": 1,
    "embed_dim": 64,
    "depth": 4,
    "num_heads": 4,
    "weight_init": "reset",
}

OPTIONS: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "model_kwargs": _MODEL,
    "num_classes": 10,
    "mean": (0.305,),
    "std": (0.376,),
    "crop_pct": 1.0,
    "dataset": DIGITS,
    "batch_size": 64,
    "hflip": 0.0,
    "crop_padding": 1,
    "steps": 40,
    "target": ("flops=50%",),
    "band": 0.4,
    "trials": 16,
    "threads": 1,
    "output": "runs/demo",
}
