"""Train the dense model of the Fashion-MNIST benchmark, for whoever does not have its checkpoint.

    python benchmarks/fashion_mnist.py
    python benchmarks/train_fmnist.py data/fmnist_vit.safetensors     # 14 epochs; some 20 minutes on 2 cores

The first 55,000 training images train; the last 5,000 are the search split, the test split is only reported.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from fashion_mnist import OPTIONS
from rich.progress import Progress

from objectives.data.loaders import Data
from objectives.error import evaluate
from objectives.training.config import FinetuneConfig
from search.config import SearchConfig
from search.driver.demo import train_dense
from spaces.models.create import create_model, preprocessing

_TRAINING_IMAGES = 55_000
_BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--epochs", type=float, default=14)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    config = SearchConfig.from_flat({**OPTIONS, "batch_size": _BATCH})
    steps = round(arguments.epochs * _TRAINING_IMAGES / _BATCH)
    with Progress() as progress:
        task = progress.add_task("training", total=steps)
        finetune = FinetuneConfig(steps=steps, lr=1.5e-3)
        train_dense(
            config.model,
            config.data,
            finetune,
            arguments.output,
            arguments.seed,
            lambda _, done, __: progress.update(task, completed=done),
        )
    trained = replace(config.model, checkpoint=str(arguments.output))
    model = create_model(trained)
    data = Data(config.data, preprocessing(model, trained))
    for split in ("search", "test"):
        found = evaluate(model, data.evaluation(split))
        print(f"{split}: top-1 {1 - found.error:.2%} of {found.count} images")


if __name__ == "__main__":
    main()
