"""Spread over seeds of one point of a run, on the test split: the allocation stays, the fine-tune's seed changes.

    python benchmarks/seeds.py runs/NAME --target flops=20% --seeds 1 2 3

Relative error is against the dense model given the same fine-tune with the same seed.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from objectives.dense_model import load_dense
from objectives.error import evaluate
from objectives.evaluator import Evaluator
from search import open_run
from spaces import Allocation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--target", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    run = open_run(arguments.run)
    config = run.config
    torch.set_num_threads(config.machines.threads or torch.get_num_threads())
    evaluator = Evaluator(load_dense(config.objective(run.directory)))
    best = run.best(arguments.target)
    chosen, identity = best.allocation, run.space.identity()
    kept = f"keeps {best.kept['macs']:.1%} of MACs, {best.kept['params']:.1%} of parameters"
    print(f"{arguments.run}, trial {best.number}: {kept}")
    print(f"test error as built {error(evaluator, chosen, None):.2%}, dense {error(evaluator, identity, None):.2%}")
    print("| seed | dense, fine-tuned | compressed, fine-tuned | relative error |\n|---|---|---|---|")
    ratios = []
    for seed in arguments.seeds:
        dense, small = error(evaluator, identity, seed), error(evaluator, chosen, seed)
        ratios.append(small / dense)
        print(f"| {seed} | {dense:.2%} | {small:.2%} | ×{ratios[-1]:.3f} |", flush=True)
    print(f"relative error ×{statistics.mean(ratios):.3f} ± {statistics.stdev(ratios):.3f} (standard deviation)")


def error(evaluator: Evaluator, allocation: Allocation, seed: int | None) -> float:
    """Top-1 error on the test split; as built without a seed, else fine-tuned with it."""
    model = evaluator.build(allocation)
    if seed is not None:
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "weights.safetensors"
            evaluator.evaluate(allocation, seed, weights=weights)
            model.load_state_dict(load_file(weights))
    return evaluate(model.to(evaluator.dense.device), evaluator.dense.data.evaluation("test")).error


if __name__ == "__main__":
    main()
