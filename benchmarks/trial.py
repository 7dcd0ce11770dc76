"""What a trial costs: CPU seconds of this process, with what all trials share made once, and with all of it made anew.

    python benchmarks/fashion_mnist.py
    python benchmarks/trial.py --checkpoint fmnist_vit.safetensors --shares 0.12 0.5

Fashion-MNIST, one thread. *anew* makes the training batches and the soft labels in the trial and measures the model as built on
the search split too, as versions before the cache did; *shared* is what a search does. Both take turns, and their errors and
weights are compared. What *shared* pays once is listed beside it.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import fashion_mnist
import torch
from safetensors.torch import load_file

from objectives.dense_model import DenseModel, load_dense
from objectives.evaluator import Evaluator
from search.budgets.knapsack import Knapsack
from search.config import SearchConfig
from search.runners.job import compute
from spaces.allocation import Allocation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.12, 0.5], help="of the MACs that candidates keep")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    options = {**fashion_mnist.OPTIONS, "checkpoint": arguments.checkpoint, "steps": arguments.steps}
    with tempfile.TemporaryDirectory() as folder:
        objective = SearchConfig.from_flat(options).objective(Path(folder) / "run")
        anew, shared = load_dense(replace(objective, measure_before=True)), load_dense(objective)
        with timed() as preparing:
            compute(anew, ["factors"])
        with timed() as sharing:
            compute(shared, ["factors", "batches"])
        print(f"prepared in {preparing[0]:.1f} CPU s; shared once a run: {sharing[0]:.1f} CPU s\n")
        print("| share of MACs | anew, CPU s | shared, CPU s | ratio | same weights |\n|---|---|---|---|---|")
        for share in arguments.shares:
            print(row(share, anew, shared, arguments.repeats, Path(folder)), flush=True)


def row(share: float, anew: DenseModel, shared: DenseModel, repeats: int, folder: Path) -> str:
    """Medians of trials that take turns."""
    limits = {"macs": share * shared.costs.dense["macs"]}
    knapsack = Knapsack(shared.space, shared.costs, shared.profile.closed)
    allocation = knapsack.allocate(limits)
    found: dict[str, list[float]] = {"anew": [], "shared": []}
    for _ in range(repeats):
        for name, dense in (("anew", anew), ("shared", shared)):
            found[name].append(trial(dense, allocation, folder / name))
    weights = [load_file(folder / name) for name in found]
    same = all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    first, second = (statistics.median(seconds) for seconds in found.values())
    return f"| {share:.0%} | {first:.1f} | {second:.1f} | {first / second:.2f} | {'yes' if same else 'no'} |"


def trial(dense: DenseModel, allocation: Allocation, weights: Path) -> float:
    with timed() as seconds:
        Evaluator(dense).evaluate(allocation, 0, weights=weights)
    return seconds[0]


@contextmanager
def timed() -> Iterator[list[float]]:
    """CPU seconds of this process, when the block has ended."""
    seconds, start = list[float](), time.process_time()
    yield seconds
    seconds.append(time.process_time() - start)


if __name__ == "__main__":
    main()
