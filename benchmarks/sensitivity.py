"""What measuring one site at a time adds to the closed-form errors: agreement, time, and the allocations that follow.

    python benchmarks/fashion_mnist.py
    python benchmarks/sensitivity.py --checkpoint fmnist_vit.safetensors --threads 1

The knapsack allocates from the closed form and from profiles of several numbers of sizes and images. What counts is the KL from
the dense model of the model as built, in thousandths of a nat, on 2,048 images of the search split, which no profile was
measured on. In brackets the difference from the closed form's allocation where it is another one, with the standard error of
the mean over the same images.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import fashion_mnist
import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor

from objectives.dense_model import load_dense
from objectives.error import predict
from objectives.evaluator import Evaluator
from objectives.profile import Errors, Profile
from objectives.sensitivity import measure_profile
from search.budgets.knapsack import Knapsack
from search.config import SearchConfig
from spaces.allocation import Allocation

BUDGETS = (20, 12, 8, 6)
DEFAULT = (3, 512)
VARIANTS = (DEFAULT, (1, 512), (2, 512), (5, 512), (3, 64), (3, 128), (3, 256), (3, 2048))  # sizes of a site, images
BATCHES = 8  # of the search split, 256 images each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--spaces", nargs="+", default=["contract", "heads", "full"])
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    for space in arguments.spaces:
        config = SearchConfig.from_flat({**fashion_mnist.OPTIONS, "checkpoint": arguments.checkpoint, "space": space})
        with tempfile.TemporaryDirectory() as folder:
            _Bench(Evaluator(load_dense(config.objective(Path(folder))))).report()


class _Bench:
    """One space of one model, with the dense model's answers."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.dense = predict(evaluator.dense.teacher, self._images())
        self._known: dict[Allocation, Tensor] = {}

    def report(self) -> None:
        """Tables in Markdown."""
        start = time.perf_counter()
        _ = self.evaluator.dense.factors
        space = self.evaluator.dense.space
        print(f"\n## Space `{space.name}`\n")
        print(f"{len(space.sites)} sites; calibration pass and factors: {time.perf_counter() - start:.0f} s.\n")
        profiles = {variant: self._measured(*variant) for variant in VARIANTS}
        default = profiles[DEFAULT][0]
        print(f"{_agreement(default)}\n")
        print(f"| errors | seconds | {' | '.join(f'{budget} %' for budget in BUDGETS)} |\n|---|---|{'---|' * len(BUDGETS)}")
        self._row("closed form", "–", default.closed, default.closed)
        for (sizes, images), (profile, seconds) in profiles.items():
            name = f"{sizes} size{'s' * (sizes > 1)}, {images} images" + (" (default)" if (sizes, images) == DEFAULT else "")
            self._row(name, f"{seconds:.0f}", profile.errors, default.closed)
        print("\nSum of the errors of the sites, against the KL of all of them together:\n")
        print("| allocated from | keeps of MACs | sum, closed form | sum, measured | KL |\n|---|---|---|---|---|")
        for name, errors in (("closed form", default.closed), ("default profile", default.errors)):
            for budget in BUDGETS:
                self._sums(name, errors, default, budget)

    def _measured(self, sizes: int, images: int) -> tuple[Profile, float]:
        start = time.perf_counter()
        batches = self.evaluator.dense.data.calibration(images)
        profile = measure_profile(self.evaluator.dense.factors, self.evaluator.dense.teacher, batches, sizes=sizes)
        return profile, time.perf_counter() - start

    def _row(self, name: str, seconds: str, errors: Errors, closed: Errors) -> None:
        cells = []
        for budget in BUDGETS:
            found, reference = (self._divergence(self._allocation(given, budget)) for given in (errors, closed))
            change = found - reference
            spread = f" ({change.mean():+.2f} ± {change.std() / len(change) ** 0.5:.2f})" if change.any() else ""
            cells.append(f"{found.mean():.2f}{spread}")
        print(f"| {name} | {seconds} | {' | '.join(cells)} |", flush=True)

    def _sums(self, name: str, errors: Errors, profile: Profile, budget: int) -> None:
        allocation = self._allocation(errors, budget)
        sums = [sum(given[site][size] for site, size in allocation.items()) for given in (profile.closed, profile.errors)]
        kept = self.evaluator.dense.costs.count(allocation, "macs") / self.evaluator.dense.costs.dense["macs"]
        divergence = self._divergence(allocation).mean()
        print(f"| {name} | {kept:.1%} | {1000 * sums[0]:.2f} | {1000 * sums[1]:.2f} | {divergence:.2f} |")

    def _allocation(self, errors: Errors, budget: int) -> Allocation:
        costs = self.evaluator.dense.costs
        return Knapsack(self.evaluator.dense.space, costs, errors).allocate({"macs": costs.dense["macs"] * budget / 100})

    def _divergence(self, allocation: Allocation) -> Tensor:
        """KL of every search image in thousandths of a nat, [images]."""
        if allocation not in self._known:
            answers = predict(self.evaluator.build(allocation).to(self.evaluator.dense.device), self._images())
            pairs = zip(answers, self.dense, strict=True)
            found = [F.kl_div(small, dense, reduction="none", log_target=True).sum(-1) for small, dense in pairs]
            self._known[allocation] = 1000 * torch.cat(found).double()
        return self._known[allocation]

    def _images(self) -> Iterator[tuple[Tensor, Tensor]]:
        return islice(self.evaluator.dense.data.evaluation("search"), BATCHES)


def _agreement(profile: Profile) -> str:
    points = [(profile.closed[name][size], value) for name, found in profile.measured.items() for size, value in found.items()]
    closed, measured = np.log(np.array(points)).T
    slope = np.polyfit(closed, measured, 1)[0]
    ratios = np.exp(np.quantile(measured - closed, (0.0, 0.1, 0.5, 0.9, 1.0)))
    spread = ", ".join(f"×{ratio:.2f}" for ratio in ratios)
    rank = f"Spearman {spearmanr(closed, measured)[0]:.4f}, slope of the logarithms {slope:.3f}"
    return f"Default, {len(points)} measured points: {rank}; measured / closed (least, 10 %, median, 90 %, largest) {spread}."


if __name__ == "__main__":
    main()
