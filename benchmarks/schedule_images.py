"""On how many images must schedules of merged tokens be measured, so that their order stays?

    python benchmarks/fashion_mnist.py
    python benchmarks/schedule_images.py --checkpoint fmnist_vit.safetensors --threads 1

Every schedule of the library, those that are beaten too, on the first calibration images. Kendall's tau with the order on all
of them, and quantiles of the ratio of the divergences to those on all.
"""

import argparse
import tempfile
from pathlib import Path

import fashion_mnist
import numpy as np
import torch
from scipy.stats import kendalltau

from objectives.dense_model import DenseModel, load_dense
from objectives.divergence import Reference
from search.config import SearchConfig
from spaces.tokens.schedules import Schedule, schedules

IMAGES = (64, 128, 256, 512, 2048)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data-dir", default=fashion_mnist.OPTIONS["data_dir"])
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    given = {"checkpoint": arguments.checkpoint, "data_dir": arguments.data_dir}
    config = SearchConfig.from_flat({**fashion_mnist.OPTIONS, **given})
    with tempfile.TemporaryDirectory() as folder:
        dense = load_dense(config.objective(Path(folder)))
        found = {images: _measured(dense, images) for images in IMAGES}
    whole = found[IMAGES[-1]]
    print("| images | tau | ratio: 10 %, median, 90 % |\n|---|---|---|")
    for images, divergences in found.items():
        low, middle, high = np.quantile(np.divide(divergences, whole), (0.1, 0.5, 0.9))
        tau = kendalltau(divergences, whole).statistic
        print(f"| {images} | {tau:.3f} | {low:.2f}, {middle:.2f}, {high:.2f} |")


def _measured(dense: DenseModel, images: int) -> list[float]:
    """Divergences of all schedules that lose something."""
    space, factors = dense.space, dense.factors
    reference = Reference(dense.teacher, dense.data.calibration(images))
    _, *lossy = schedules(space)

    def divergence(schedule: Schedule) -> float:
        built = factors.build(space.lossless().replace(space.scheduled(schedule)))
        return reference.divergence(built, "merged tokens")

    return [divergence(schedule) for schedule in lossy]


if __name__ == "__main__":
    main()
