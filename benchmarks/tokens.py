"""What merged tokens and dropped branches are worth after the short fine-tune: Fashion-MNIST, 16 or 49 patch tokens.

    python benchmarks/fashion_mnist.py
    python benchmarks/tokens.py measure --checkpoint data/fmnist_vit.safetensors --multiple 2
    python benchmarks/train_fmnist.py data/fmnist_vit_p4.safetensors --patch-size 4 --epochs 16 --amp
    python benchmarks/tokens.py measure --checkpoint data/fmnist_vit_p4.safetensors --patch-size 4 --shares 0.5 0.35 0.25 0.12
    python benchmarks/tokens.py report

An allocation is what a search starts with: of the frames that the profile expects most of, the one of least divergence as built
on the images of the profile. Errors and divergences are those of the test split, which decided nothing. A seed draws the
fine-tune's batches. Measurements are appended to a file of JSON lines and never repeated.
"""

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import fashion_mnist
import numpy as np
import torch
from timm.layers import set_fused_attn
from torch import nn

from objectives.cost.spec import MAIN
from objectives.dense_model import load_dense
from objectives.error import Evaluation, evaluate, predict
from objectives.evaluator import Evaluator
from objectives.training.finetune import finetune
from search.budgets.frames import Frames, frames_of
from search.budgets.knapsack import Knapsack
from search.config import SearchConfig
from spaces.allocation import Allocation
from spaces.errors import AllocationError

RUNS = Path("runs/tokens")
DENSE, NO_TAIL, WIDTHS, TOKENS, DROPPED, ALL = (
    "dense",
    "widths, no tail",
    "widths",
    "and tokens",
    "and dropped branches",
    "and both",
)
WAYS = (DENSE, NO_TAIL, WIDTHS, TOKENS, DROPPED, ALL)
_MEASURED = 5  # frames whose allocations are measured as built


@dataclass(frozen=True, kw_only=True)
class Result:
    """One fine-tune.

    Attributes:
        patch_size, multiple: of the model, and of the widths.
        way, share, seed: what was fine-tuned.
        kept: share of the dense model's MACs.
        schedule: patch tokens that leave the attention of every block.
        dropped: branches that are left out.
        built, divergence: from the dense model on the test split, before and after the fine-tune, in nats.
        built_error, error, dense: on the test split, before, after, and the dense model's as given.
        steps: of the fine-tune.
    """

    patch_size: int
    multiple: int
    way: str
    share: float
    seed: int
    kept: float
    schedule: Sequence[int]
    dropped: Sequence[str]
    built: float
    divergence: float
    built_error: float | None = None
    error: float
    dense: float
    steps: int = 100

    @property
    def key(self) -> tuple[int, int, str, float, int, int]:
        """What it is a measurement of."""
        return self.patch_size, self.multiple, self.way, self.share, self.seed, self.steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "report"])
    parser.add_argument("--checkpoint", default="data/fmnist_vit.safetensors")
    parser.add_argument("--patch-size", type=int, default=fashion_mnist.OPTIONS["model_kwargs"]["patch_size"])
    parser.add_argument("--multiple", type=int, default=8, help="of widths")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.12, 0.1, 0.08, 0.075, 0.06, 0.05])
    parser.add_argument("--ways", nargs="+", choices=WAYS[1:], default=WAYS[1:])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100, help="of the fine-tune; 0 for candidates as built")
    parser.add_argument("--output", type=Path, default=RUNS / "results.jsonl")
    arguments = parser.parse_args()
    if arguments.what == "report":
        print("\n".join(report(read(arguments.output))))
        return
    torch.set_num_threads(1)
    set_fused_attn(False)  # on a CPU the backward pass of torch's kernel takes longer than all else together
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.checkpoint, arguments.patch_size, arguments.multiple, arguments.steps)
    done = {result.key for result in read(arguments.output)}
    for seed in arguments.seeds:
        for share in (1.0, *arguments.shares):
            for way in [DENSE] if share == 1.0 else arguments.ways:
                if (arguments.patch_size, arguments.multiple, way, share, seed, arguments.steps) in done:
                    continue
                try:
                    result = bench.measure(way, share, seed)
                except AllocationError as error:
                    print(f"{share:.1%}, {way}: {error}", flush=True)
                    continue
                with arguments.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(result)) + "\n")
                print(result, flush=True)


class Bench:
    """A dense model with its profile, its frames and its images."""

    def __init__(self, checkpoint: str, patch_size: int, multiple: int, steps: int) -> None:
        self.patch_size, self.multiple = patch_size, multiple
        shape = {**fashion_mnist.OPTIONS["model_kwargs"], "patch_size": patch_size}
        options = {
            **fashion_mnist.OPTIONS,
            "model_kwargs": shape,
            "checkpoint": checkpoint,
            "multiple": multiple,
            "steps": steps,
        }
        config = SearchConfig.from_flat({**options, "device": "cpu", "threads": 1})
        self.evaluator = Evaluator(load_dense(config.objective(RUNS / f"patch-{patch_size}-multiple-{multiple}")))
        self.dense, self.finetune = self.evaluator.dense, config.finetune
        self.answers = predict(self.dense.model, self.dense.data.evaluation("test"))
        self.error = self._test(self.dense.model).error
        self._chosen: dict[tuple[str, float], Allocation] = {}
        self._measured: dict[tuple[Allocation, int], tuple[Evaluation, Evaluation]] = {}

    def measure(self, way: str, share: float, seed: int) -> Result:
        """Choose, build, fine-tune and measure."""
        if (way, share) not in self._chosen:
            self._chosen[way, share] = self._choose(way, share)
        dense, allocation = self.dense, self._chosen[way, share]
        if (allocation, seed) not in self._measured:
            self._measured[allocation, seed] = self._finetuned(allocation, seed)
        built, found = self._measured[allocation, seed]
        assert built.kl is not None and found.kl is not None
        return Result(
            patch_size=self.patch_size,
            multiple=self.multiple,
            way=way,
            share=share,
            seed=seed,
            kept=dense.costs.count(allocation, MAIN.name) / dense.costs.dense[MAIN.name],
            schedule=dense.space.schedule(allocation),
            dropped=[site.branch for site in dense.space.sites if site.kind == "branch" and not allocation[site.name]],
            built=built.kl,
            divergence=found.kl,
            built_error=built.error,
            error=found.error,
            dense=self.error,
            steps=self.finetune.steps,
        )

    def _finetuned(self, allocation: Allocation, seed: int) -> tuple[Evaluation, Evaluation]:
        """Figures on the test split before and after the fine-tune."""
        model = self.evaluator.build(allocation)
        built = self._test(model)
        if not self.finetune.steps:
            return built, built
        self.dense.keep_training(seed=seed)
        torch.manual_seed(seed)
        for _ in finetune(model, self.dense.batches.training(self.finetune.steps, seed), self.finetune):
            pass
        return built, self._test(model)

    def _test(self, model: nn.Module) -> Evaluation:
        return evaluate(model, self.dense.data.evaluation("test"), self.answers)

    def _choose(self, way: str, share: float) -> Allocation:
        """The best measured of the allocations that the profile expects most of."""
        if way == DENSE:
            return self.dense.space.identity()
        dense, limits = self.dense, {MAIN.name: share * self.dense.costs.dense[MAIN.name]}
        knapsack = Knapsack(dense.space, dense.costs, dense.profile.errors, self._frames(way))
        frames = np.array([frame for frame in range(len(knapsack.frames)) if _fits(knapsack, frame, limits)], dtype=int)
        if not len(frames):
            raise AllocationError("no allocation is small enough")
        chosen = knapsack.solve(limits, np.zeros((len(frames), len(knapsack.sites))), np.ones(len(frames)), frames)
        features, sites = knapsack.features(chosen, frames), len(knapsack.sites)
        expected = knapsack.frames.divergence_of(features[:, :sites].sum(1)) + features[:, sites:].sum(1)
        order = expected.argsort()[:_MEASURED]
        ranked = [knapsack.allocation(chosen[place], int(frames[place])) for place in order]
        divergences = [self.evaluator.divergence(allocation) for allocation in ranked] if len(ranked) > 1 else [math.nan]
        for allocation, place, divergence in zip(ranked, order, divergences, strict=True):
            found = f"{expected[place]:.4f} expected, {divergence:.4f} measured"
            print(f"{share:.1%}, {way}: {dense.space.schedule(allocation)}, {found}", flush=True)
        return ranked[int(np.argmin(divergences))]

    def _frames(self, way: str) -> Frames:
        space = self.dense.space
        if way == NO_TAIL:
            return Frames(schedules=(space.schedule(space.identity()),))
        return frames_of(self.dense.frames, self.dense.profile.errors, tokens=way in (TOKENS, ALL), drop=way in (DROPPED, ALL))


def _fits(knapsack: Knapsack, frame: int, limits: dict[str, float]) -> bool:
    """Whether a frame has an allocation that keeps the limits."""
    try:
        knapsack.choose(limits, np.zeros((1, len(knapsack.sites))), np.ones((1, 1)), np.array([frame]))
    except AllocationError:
        return False
    return True


def read(path: Path) -> list[Result]:
    """Results of a file, if it is there."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Result(**json.loads(line)) for line in lines]


def report(results: Sequence[Result]) -> Iterator[str]:
    """Tables in Markdown: mean and standard deviation over the seeds."""
    settings = dict.fromkeys((result.patch_size, result.multiple, result.steps) for result in results)
    for patch_size, multiple, steps in settings:
        found: dict[tuple[float, str], list[Result]] = defaultdict(list)
        for result in results:
            if (result.patch_size, result.multiple, result.steps) == (patch_size, multiple, steps):
                found[result.share, result.way].append(result)
        yield f"\n### Patches of {patch_size} pixels, widths in steps of {multiple}, {steps} steps\n"
        trained = {result.seed: result.error for result in found.pop((1.0, DENSE), [])}
        columns = (
            "budget | way | tokens | dropped | divergence as built | fine-tuned | error over dense | over dense, fine-tuned"
        )
        yield f"| {columns} |"
        yield "|---|---|---|---|---|---|---|---|"
        for (share, way), same in sorted(found.items(), key=lambda entry: (-entry[0][0], WAYS.index(entry[0][1]))):
            first = same[0]
            cells = [f"{share:.1%}", way, ", ".join(map(str, first.schedule)), ", ".join(first.dropped)]
            cells += [spread([result.built for result in same]), spread([result.divergence for result in same])]
            cells += [spread([result.error / result.dense for result in same], 3)]
            cells += [spread([result.error / trained[result.seed] for result in same if result.seed in trained], 3)]
            yield f"| {' | '.join(cells)} |"


def spread(values: Sequence[float], digits: int = 4) -> str:
    """Mean ± standard deviation."""
    if not values:
        return ""
    middle = f"{statistics.mean(values):.{digits}f}"
    return f"{middle} ± {statistics.stdev(values):.{digits}f}" if len(set(values)) > 1 else middle


if __name__ == "__main__":
    main()
