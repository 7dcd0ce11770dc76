"""The models and images that the parts measure with, as options of a search; their small stand-ins are made of the digits."""

from pathlib import Path
from typing import Any

import fashion_mnist
import numpy as np
from PIL import Image
from torch import nn

from gpu.setting import Setting
from objectives.data.config import DIGITS
from objectives.dense_model import load_dense
from objectives.error import evaluate
from objectives.evaluator import Evaluator
from search.config import SearchConfig
from search.driver import demo_options

BATCH = 512  # of what is trained for epochs
_WIDTH, _DEPTH, _HEADS = 192, 12, 6
_SMALL: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2}
_PICTURES = {"train": 3000, "val": 200}
_SIDE, _CLASSES = 256, 8


def fashion(setting: Setting, **options: Any) -> SearchConfig:
    """A ViT of 4x4 patches and 12 blocks (5.4 M parameters) on Fashion-MNIST; tiny, two blocks on the digits.

    Its weights are those that the part `train` made, where it has.

    Args:
        setting: where and at which size.
        options: of the search, in place of the defaults.
    """
    common = {"device": setting.device, "workers": setting.loaders}
    if setting.dense.exists():
        common["checkpoint"] = str(setting.dense)
    if setting.tiny:
        kwargs = {**demo_options.OPTIONS["model_kwargs"], **_SMALL}
        given = {**demo_options.OPTIONS, "model_kwargs": kwargs, "steps": 2, "calibration_size": 64, "profile_images": 32}
        return SearchConfig.from_flat({**given, **common, **options})
    kwargs = {**fashion_mnist.OPTIONS["model_kwargs"], "patch_size": 4, "embed_dim": _WIDTH}
    kwargs.update(depth=_DEPTH, num_heads=_HEADS)
    given = {**fashion_mnist.OPTIONS, "model_kwargs": kwargs, "data_dir": str(unpacked(setting))}
    return SearchConfig.from_flat({**given, **common, **options})


def pictures(setting: Setting, **options: Any) -> SearchConfig:
    """ViT-S/16 at 224 pixels with random weights, on a folder of JPEGs that show nothing; tiny, two blocks on the digits.

    Args:
        setting: where and at which size.
        options: of the search, in place of the defaults.
    """
    common = {"device": setting.device, "workers": setting.loaders}
    if setting.tiny:
        kwargs = {**_SMALL, "img_size": 32, "patch_size": 8, "in_chans": 1}
        given = {"model": "vit_tiny_patch16_224", "model_kwargs": kwargs, "dataset": DIGITS, "calibration_size": 64}
        small = {**given, "num_classes": 10, "profile_images": 32, "steps": 2, "batch_size": 16, "search_size": 32}
        return SearchConfig.from_flat({**small, **common, **options})
    folder = drawn(setting.folder / "pictures")
    given = {"model": "vit_small_patch16_224", "num_classes": _CLASSES, "data_dir": str(folder), "search_size": 1000}
    return SearchConfig.from_flat({**given, **common, **options})


def evaluator_of(config: SearchConfig, setting: Setting, name: str) -> Evaluator:
    """An evaluator; what it computes once is kept in a folder of this name."""
    return Evaluator(load_dense(config.objective(setting.folder / "once" / f"{name}{'-tiny' if setting.tiny else ''}")))


def error_on_test(evaluator: Evaluator, model: nn.Module) -> float:
    """Top-1 error on the test split, which nothing is selected on."""
    return evaluate(model.to(evaluator.dense.device), evaluator.dense.data.evaluation("test")).error


def unpacked(setting: Setting) -> Path:
    """The folder of Fashion-MNIST, unpacked first where it is not yet."""
    fashion_mnist.prepare(setting.data, setting.data)
    return setting.data


def drawn(folder: Path) -> Path:
    """A folder of JPEGs of smooth random colours, 256 pixels a side, which take as long to read as photographs of that size."""
    rng = np.random.default_rng(0)
    for split, count in _PICTURES.items():
        for index in range(count):
            path = folder / split / f"class{index % _CLASSES}" / f"{index:05d}.jpg"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                coarse = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
                coarse.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(path, quality=90)
    return folder
