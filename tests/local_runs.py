"""A small model and short runs for the tests of the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch

SIZES = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 16, "depth": 1, "num_heads": 2}
MODEL = ["--model", "vit_tiny_patch16_224", "--model-kwargs", *(f"{key}={value}" for key, value in SIZES.items())]
SHORT = ["--calibration-size", "64", "--steps", "1", "--lr", "5e-4", "--trials", "2", "--workers", "0", "--device", "cpu"]
DIGITS = ["--dataset", "digits", *SHORT]

Fails = Callable[..., str]


def model(**changes: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    created: torch.nn.Module = timm.create_model("vit_tiny_patch16_224", **{**SIZES, "num_classes": 10, **changes})
    return created


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
