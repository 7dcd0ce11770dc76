"""What a long fine-tune before the export gives over the short one: errors of one trial's model on both splits.

    python benchmarks/long_finetune.py runs/NAME --trial N --epochs 5 20 --seeds 3 [--recipe mixup=0 ...]

Each seed has its own short fine-tune, of as many steps as the search's, from which all its long ones begin. The epoch is chosen
on the search split; the test split is measured afterwards.
"""

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from timm.utils import ParseKwargs
from torch import nn

from objectives.dense_model import load_dense
from objectives.error import evaluate
from objectives.evaluator import Evaluator
from objectives.training.config import TrainingConfig
from objectives.training.epochs import train
from objectives.training.long_finetune import Course
from search import open_run
from spaces.allocation import Allocation

HEADER = "| epochs | seed | search split: short | long | test split: short | long | kept | seconds |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--trial", type=int, required=True)
    parser.add_argument("--epochs", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipe", nargs="*", action=ParseKwargs, default={}, help="options of TrainingConfig")
    arguments = parser.parse_args()
    run = open_run(arguments.run)
    torch.set_num_threads(run.config.machines.threads or torch.get_num_threads())
    evaluator = Evaluator(load_dense(run.config.objective(run.directory)))
    config = TrainingConfig(**arguments.recipe)
    print(HEADER + "\n" + "|---" * HEADER.count(" | ") + "|---|")
    found = [
        measured(evaluator, run.trial(arguments.trial).allocation, config, arguments.epochs, seed)
        for seed in range(arguments.seeds)
    ]
    for epochs, rows in zip(arguments.epochs, zip(*found, strict=True), strict=True):
        short, long = (statistics.mean(row[name] for row in rows) for name in ("short", "long"))
        print(f"{epochs} epochs: test error {100 * short:.2f} % -> {100 * long:.2f} %, means of {len(rows)} seeds", flush=True)


def measured(
    evaluator: Evaluator, allocation: Allocation, config: TrainingConfig, lengths: list[int], seed: int
) -> list[dict[str, float]]:
    """Test errors after the short and each long fine-tune of one seed; prints a line for each."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "short.safetensors"
        evaluator.evaluate(allocation, seed, weights=weights)
        model = evaluator.build(allocation)
        model.load_state_dict(load_file(weights))
        short = test_error(evaluator, model)
        for epochs in lengths:
            course = Course(
                config=replace(config, finetune_epochs=epochs),
                finetune=evaluator.dense.objective.finetune,
                data=evaluator.dense.data,
                classes=evaluator.dense.model.num_classes,  # type: ignore[arg-type]
                seed=seed,
            )
            trained_model, trained = train(model, course, evaluator.dense.teacher, Path(folder) / f"{epochs}.safetensors")
            long = test_error(evaluator, trained_model)
            kept = f"{trained.best_weights}, epoch {trained.best_epoch}"
            print(
                f"| {epochs} | {seed} | {100 * trained.start_error:.2f} % | {100 * trained.error:.2f} % | {100 * short:.2f} % "
                f"| {100 * long:.2f} % | {kept} | {trained.seconds:.0f} |",
                flush=True,
            )
            rows.append({"short": short, "long": long})
    return rows


def test_error(evaluator: Evaluator, model: nn.Module) -> float:
    return evaluate(model.to(evaluator.dense.device), evaluator.dense.data.evaluation("test")).error


if __name__ == "__main__":
    main()
