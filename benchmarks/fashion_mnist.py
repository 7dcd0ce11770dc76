"""Prepare the real benchmark: Fashion-MNIST in torchvision's layout, from Debian's package.

    apt-get install dataset-fashion-mnist
    python benchmarks/fashion_mnist.py            # writes data/FashionMNIST/raw

The options below are those of every Fashion-MNIST result in benchmarks/results.
"""

import gzip
import shutil
from pathlib import Path
from typing import Any

SOURCE = Path("/usr/share/datasets/fashion-mnist")
ROOT = Path("data")

# 28x28 grey images in 16 patches; 1.2 M parameters.
OPTIONS: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "model_kwargs": {"img_size": 28, "patch_size": 7, "in_chans": 1, "embed_dim": 128, "depth": 6, "num_heads": 4},
    "num_classes": 10,
    "mean": (0.286,),
    "std": (0.353,),
    "crop_pct": 1.0,
    "dataset": "torch/fashion_mnist",
    "data_dir": str(ROOT),
    "holdout": "end",  # the dense model was trained on the first 55,000 training images
    "search_size": 5000,
    "crop_padding": 2,
    "calibration_size": 2048,
    "lr": 5e-4,  # None: probed, as launches do by default
}


def prepare(source: Path = SOURCE, root: Path = ROOT) -> Path:
    """Unpack the four files to where torchvision looks for them."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for packed in sorted(source.glob("*-ubyte.gz")):
        target = raw / packed.stem
        if not target.exists():
            with gzip.open(packed, "rb") as stream, target.open("wb") as file:
                shutil.copyfileobj(stream, file)
    return raw


if __name__ == "__main__":
    print(prepare())
