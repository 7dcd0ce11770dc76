"""Which operator loses least at the same MACs, with no fine-tune: error of the last feature of a pretrained ViT-S/14.

    python benchmarks/fashion_mnist.py
    python benchmarks/vit_small.py
    OMP_NUM_THREADS=1 python benchmarks/operators.py --seeds 0 1 2

Every block is cut alike. The error is the squared difference of `forward_features` over the squared norm of the dense
model's, on held-out images; it says nothing about accuracy after a fine-tune. A seed draws the calibration images and the
held-out ones from Fashion-MNIST's training images, resized to 70x70.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from unittest import mock

import timm
import torch
import vit_small
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.datasets import FashionMNIST

from objectives.cost import CostModel, cost_model
from spaces import heads as rankings
from spaces.factors import Factors
from spaces.operators import input_of, linear_of, variant_of
from spaces.pruning import prefix_factors
from spaces.sites import Site, Space
from spaces.statistics import Moments, collect
from spaces.vit import describe

SHARES = (0.75, 0.6, 0.5)
_BATCH = 64

# Name -> space and variants of its sites, by branch.
WAYS: dict[str, dict[str, tuple[str, dict[str, str]]]] = {
    "attn": {
        "plain SVD": ("low-rank", {"rank": "plain"}),
        "whitened SVD": ("low-rank", {}),
        "magnitude widths": ("contract", {"query_key": "magnitude", "value_output": "magnitude"}),
        "contraction": ("contract", {}),
    },
    "mlp": {
        "plain SVD": ("low-rank", {"rank": "plain"}),
        "whitened SVD": ("low-rank", {}),
        "magnitude neurons": ("contract", {"ffn_hidden": "magnitude"}),
        "variance order, corrected": ("contract", {"ffn_hidden": "variance"}),
        "optimal-brain order, corrected": ("contract", {}),
    },
}
PAIRS = (
    ("plain SVD", "plain SVD"),
    ("plain SVD", "magnitude neurons"),
    ("magnitude widths", "magnitude neurons"),
    ("whitened SVD", "whitened SVD"),
    ("whitened SVD", "optimal-brain order, corrected"),
    ("contraction", "optimal-brain order, corrected"),
)
RANKINGS = ("energy", "elimination", "magnitude", "taylor", "graph")
ORDERS = {
    "magnitude": "magnitude neurons",
    "variance": "variance order, corrected",
    "optimal-brain": "optimal-brain order, corrected",
}
LEVELS = ("none", "mean", "full")
_TABLES = {"attn": "attention", "mlp": "FFN"}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One row of a table: the size asked for, what is built, and the share of the dense model's MACs that it keeps."""

    table: str
    asked: str
    name: str
    build: Callable[[], nn.Module]
    kept: float


@dataclass(frozen=True, kw_only=True)
class Score:
    """Share of MACs kept; relative squared error over all tokens, and of the class token."""

    kept: float
    tokens: float
    class_token: float


Scores = dict[tuple[str, str, str], list[Score]]  # table, size asked for, name -> one score per draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=vit_small.OUTPUT)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--calibration", type=int, default=768, help="images per draw")
    parser.add_argument("--held-out", type=int, default=250, help="images per draw")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, timm {timm.__version__}, {torch.get_num_threads()} threads", flush=True)
    dense, images = vit_small.load(arguments.weights), FashionMNIST(arguments.data_dir, train=True).data
    scores: Scores = defaultdict(list)
    agreements: list[dict[str, list[float]]] = []
    for seed in arguments.seeds:
        start = time.perf_counter()
        drawn = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]
        drawn = prepared(drawn[: arguments.calibration + arguments.held_out])
        draw = Draw(dense, drawn[: arguments.calibration], drawn[arguments.calibration :])
        for candidate in candidates(draw):
            score = draw.score(candidate)
            key = candidate.table, candidate.asked, candidate.name
            scores[key].append(score)
            print(seed, *key, score, sep=" | ", file=sys.stderr, flush=True)
        agreements.append(ranking_rows(draw))
        print(f"seed {seed}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    report(scores, agreements)


def prepared(images: Tensor) -> Tensor:
    """Grey bytes [N, 28, 28] as normalised colour images [N, 3, 70, 70]."""
    size = vit_small.OPTIONS["img_size"]
    grey = interpolate(images.unsqueeze(1).float() / 255, size=size, mode="bilinear")
    mean, std = (torch.tensor(values)[:, None, None] for values in (vit_small.MEAN, vit_small.STD))
    return (grey - mean) / std


class Draw:
    """One draw of images: the moments of the dense model, the factors computed from them, and the features to compare with."""

    def __init__(self, dense: nn.Module, calibration: Tensor, held_out: Tensor) -> None:
        self.dense, self.held_out = dense, held_out
        self.moments = all_moments(dense, calibration)
        self.reference = self._features(dense)
        self._factors: dict[object, Factors] = {}

    def factors(self, part: str, name: str) -> Factors:
        """Factors of a way to cut a branch."""
        space, variants = WAYS[part][name]
        return self.compute(part, space, tuple(variants.items()))

    def compute(self, part: str, space: str, variants: tuple[tuple[str, str], ...], multiple: int = 8) -> Factors:
        """Factors of one part of a space, computed once per draw, or once at all where no image is needed."""
        found, chosen, key = part_space(self.dense, space, part, multiple), dict(variants), (part, space, variants, multiple)
        if not any(variant_of(site.kind, chosen).needs for site in found.sites):
            return without_images(self.dense, part, space, variants, multiple)
        if key not in self._factors:
            self._factors[key] = decompose(self.dense, found, chosen, self.moments)
        return self._factors[key]

    def score(self, candidate: Candidate) -> Score:
        """Build and measure a candidate."""
        difference = self._features(candidate.build()) - self.reference
        tokens, class_token = (
            float(lost.square().sum() / whole.square().sum())
            for lost, whole in ((difference, self.reference), (difference[:, 0], self.reference[:, 0]))
        )
        return Score(kept=candidate.kept, tokens=tokens, class_token=class_token)

    def _features(self, model: nn.Module) -> Tensor:
        with torch.inference_mode():
            return torch.cat([model.forward_features(batch) for batch in self.held_out.split(_BATCH)])  # type: ignore[operator]


def all_moments(dense: nn.Module, images: Tensor) -> dict[str, Moments]:
    """Moments that any of the ways asks for, in one pass."""
    names = [site.branch for site in describe(dense, "heads").sites if site.kind == "heads"]
    linears = [f"{name}.{linear}" for name in names for linear in ("qkv", "proj")]
    linears += [f"{name.removesuffix('attn')}mlp.{linear}" for name in names for linear in ("fc1", "fc2")]
    count: int = dense.get_submodule(names[0]).num_heads  # type: ignore[assignment]
    salient = {f"{name}.proj": count for name in names}
    return collect(dense, linears, images.split(_BATCH), {f"{name}.qkv" for name in names}, salient)


@cache
def without_images(dense: nn.Module, part: str, space: str, variants: tuple[tuple[str, str], ...], multiple: int) -> Factors:
    """Factors that no draw changes."""
    return decompose(dense, part_space(dense, space, part, multiple), dict(variants), {})


def decompose(dense: nn.Module, space: Space, variants: dict[str, str], moments: dict[str, Moments]) -> Factors:
    """Factors from moments that are there already."""
    with mock.patch("spaces.factors.collect", return_value=moments):
        return Factors.compute(dense, space, [], variants=variants)  # type: ignore[arg-type]


@cache
def part_space(dense: nn.Module, name: str, part: str, multiple: int = 8) -> Space:
    """A space with the branches of one part only."""
    space = describe(dense, name, multiple)  # type: ignore[arg-type]
    return replace(space, branches={path: rivals for path, rivals in space.branches.items() if path.endswith(part)})


@cache
def costs(dense: nn.Module, name: str, part: str, multiple: int = 8) -> CostModel:
    return cost_model(dense, part_space(dense, name, part, multiple))


def candidates(draw: Draw) -> Iterator[Candidate]:
    """Everything that is measured, table by table."""
    for share in SHARES:
        parts = {part: {name: uniform(draw, part, name, share) for name in ways} for part, ways in WAYS.items()}
        for found in parts.values():
            yield from found.values()
        for first, second in PAIRS:
            yield together(parts["attn"][first], parts["mlp"][second])
    yield from whole_heads(draw)
    yield from heads_and_widths(draw)
    yield from neuron_corrections(draw)


def uniform(draw: Draw, part: str, name: str, share: float) -> Candidate:
    """Every site of a part at the size nearest to `share`."""
    factors = draw.factors(part, name)
    sizes = {site: site.nearest(share) for site in factors.space.sites}
    return sized(draw, factors, (_TABLES[part], f"{share:.0%}", name), sizes)


def sized(draw: Draw, factors: Factors, row: tuple[str, str, str], sizes: dict[Site, int], multiple: int = 8) -> Candidate:
    """These sizes, the other sites dense; `row` is the table, the size asked for and the name."""
    space = factors.space
    allocation = space.identity().replace({site.name: size for site, size in sizes.items()})
    part = space.sites[0].branch.rpartition(".")[2]
    cost = costs(draw.dense, space.name, part, multiple)
    kept = cost.count(allocation, "macs") / cost.dense["macs"]
    table, asked, name = row
    return Candidate(table=table, asked=asked, name=name, build=lambda: factors.build(allocation), kept=kept)


def together(attention: Candidate, ffn: Candidate) -> Candidate:
    """Attention of one candidate, FFN of another."""

    def build() -> nn.Module:
        model, other = attention.build(), ffn.build()
        for block, source in zip(model.blocks, other.blocks, strict=True):  # type: ignore[arg-type]
            block.mlp = source.mlp
        return model

    kept = attention.kept + ffn.kept - 1
    name = f"{attention.name} + {ffn.name}"
    return Candidate(table="both", asked=attention.asked, name=name, build=build, kept=kept)


def whole_heads(draw: Draw) -> Iterator[Candidate]:
    """Every ranking of heads with the output projection solved anew; some with less, to see what the solution brings."""
    for ranking, level in [
        *((ranking, "full") for ranking in RANKINGS),
        *itertools.product(("elimination", "magnitude"), LEVELS[:2]),
    ]:
        variants = {"heads": ranking} | ({} if level == "full" else {"value_output": "magnitude"})
        factors = draw.compute("attn", "heads", tuple(variants.items()))
        if level == "mean":
            factors = with_means(factors, draw.moments)
        sites = [site for site in factors.space.sites if site.kind == "heads"]
        for count in range(sites[0].dense - 1, sites[0].dense // 2 - 1, -1):
            row = "heads", f"{count} of {sites[0].dense}", f"{ranking}, correction: {level}"
            yield sized(draw, factors, row, dict.fromkeys(sites, count))


def heads_and_widths(draw: Draw) -> Iterator[Candidate]:
    """Fewer heads and narrower ones at about the same MACs, down to heads of their dense width; widths to the nearest unit."""
    factors = draw.compute("attn", "heads", (("heads", "elimination"),), multiple=1)
    total = next(site.dense for site in factors.space.sites if site.kind == "heads")
    for share in (0.75, 0.5):
        for count in range(total, 0, -1):
            per_head = share * total / count
            if per_head <= 1:
                sizes = {site: count if site.kind == "heads" else site.nearest(per_head) for site in factors.space.sites}
                width = next(size for site, size in sizes.items() if site.kind != "heads")
                row = "heads and widths", f"{share:.0%}", f"{count} heads of {width}"
                yield sized(draw, factors, row, sizes, multiple=1)


def neuron_corrections(draw: Draw) -> Iterator[Candidate]:
    """Orders of FFN neurons times corrections, at half the neurons."""
    for (order, name), level in itertools.product(ORDERS.items(), LEVELS):
        factors = recorrected(draw.factors("mlp", name), level, draw.moments)
        sizes = {site: site.nearest(0.5) for site in factors.space.sites}
        yield sized(draw, factors, ("neurons", "50%", f"{order} order, correction: {level}"), sizes)


def with_means(factors: Factors, moments: dict[str, Moments]) -> Factors:
    """Uncorrected factors of values and outputs, with the mean of what is lost moved into the bias."""
    tensors = dict(factors._tensors)
    for site in factors.space.sites:
        if site.kind == "value_output":
            tensors[f"{site.name}.mean"] = moments[input_of(site)].mean.float()
    return Factors(factors.dense, factors.space, tensors)


def recorrected(factors: Factors, level: str, moments: dict[str, Moments]) -> Factors:
    """The same order of neurons with no correction, the lost mean in the bias, or least squares."""
    tensors = dict(factors._tensors)
    for site in factors.space.sites:
        weight, _ = linear_of(factors.dense, input_of(site))
        found, order = moments[input_of(site)], tensors[f"{site.name}.order"].long()
        projected, triangle = weight[:, order], torch.eye(len(order))
        if level == "full":
            solved = prefix_factors(projected.double(), found.covariance[order][:, order])
            projected, triangle = solved.projected.float(), solved.triangle.float()
        mean = torch.zeros(len(order)) if level == "none" else found.mean.float()
        values = {"projected": projected, "triangle": triangle, "mean": mean}
        tensors |= {f"{site.name}.{key}": value for key, value in values.items()}
    return Factors(factors.dense, factors.space, tensors)


def head_scores(draw: Draw, branch: str, ranking: str, rotate: bool = False) -> Tensor:
    """Scores of one layer's heads; with every head's values turned by a random rotation that leaves the model as it is."""
    (qkv, _), (weight, _) = linear_of(draw.dense, f"{branch}.qkv"), linear_of(draw.dense, f"{branch}.proj")
    moments, count = draw.moments[f"{branch}.proj"], draw.dense.get_submodule(branch).num_heads
    turn = torch.eye(weight.shape[1], dtype=torch.float64)
    if rotate:
        generator = torch.Generator().manual_seed(0)
        size = (weight.shape[1] // count,) * 2
        turn = torch.block_diag(*(torch.linalg.qr(torch.randn(size, generator=generator).double()).Q for _ in range(count)))
    weight, covariance, second = weight.double() @ turn.T, turn @ moments.covariance @ turn.T, turn @ moments.second() @ turn.T
    assert moments.saliency is not None
    scores: dict[str, Callable[[], Tensor]] = {
        "energy": lambda: rankings.energy_scores(weight, covariance, count),
        "elimination": lambda: rankings.elimination_scores(weight, covariance, count),
        "magnitude": lambda: rankings.magnitude_scores(qkv, weight, count),
        "taylor": lambda: rankings.taylor_scores(moments.saliency, count),
        "graph": lambda: rankings.graph_scores(second, count),
    }
    return scores[ranking]().double()


def ranking_rows(draw: Draw) -> dict[str, list[float]]:
    """Per ranking, over layers: error of the layer's output over that of the best three heads of all subsets; and more."""
    rows = {}
    branches = [site.branch for site in part_space(draw.dense, "heads", "attn").sites if site.kind == "heads"]
    errors = {branch: subset_errors(draw, branch) for branch in branches}
    for ranking in RANKINGS:
        ratios, same, turned = [], [], []
        for branch in branches:
            scores = head_scores(draw, branch, ranking)
            kept = frozenset(scores.argsort(descending=True, stable=True)[: len(scores) // 2].tolist())
            best = min(errors[branch], key=errors[branch].__getitem__)
            ratios.append(errors[branch][kept] / errors[branch][best])
            same.append(kept == best)
            other = head_scores(draw, branch, ranking, rotate=True).argsort(descending=True, stable=True)[: len(scores) // 2]
            turned.append(kept != frozenset(other.tolist()))
        rows[ranking] = [statistics.mean(ratios), max(ratios), sum(same), sum(turned)]
    return rows


def subset_errors(draw: Draw, branch: str) -> dict[frozenset[int], float]:
    """Expected squared error of the attention's output, once corrected, for every choice of half of the heads."""
    weight, moments = linear_of(draw.dense, f"{branch}.proj")[0].double(), draw.moments[f"{branch}.proj"]
    count: int = draw.dense.get_submodule(branch).num_heads  # type: ignore[assignment]
    columns = torch.arange(weight.shape[1]).reshape(count, -1)
    errors = {}
    for kept in itertools.combinations(range(count), count // 2):
        order = torch.cat([columns[list(kept)], columns[[head for head in range(count) if head not in kept]]]).flatten()
        found = prefix_factors(weight[:, order], moments.covariance[order][:, order])
        errors[frozenset(kept)] = float(found.error[weight.shape[1] // 2])
    return errors


def report(scores: Scores, agreements: list[dict[str, list[float]]]) -> None:
    """Tables in Markdown: mean and standard deviation over the draws."""
    for table in dict.fromkeys(key[0] for key in scores):
        print(f"\n### {table}\n")
        print(
            "| kept | operator | of all MACs | error, all tokens | error, class token | all tokens, per share of MACs removed |"
        )
        print("|---|---|---|---|---|---|")
        for (_, asked, name), found in ((key, found) for key, found in scores.items() if key[0] == table):
            columns = [[getattr(score, field) for score in found] for field in ("tokens", "class_token")]
            columns.append([score.tokens / (1 - score.kept) for score in found])
            print(f"| {asked} | {name} | {found[0].kept:.1%} | {' | '.join(spread(values) for values in columns)} |")
    print("\n### rankings of heads, 3 of 6, layer by layer\n")
    print("| ranking | error over the best subset's, mean | worst | layers with the best subset | changed by a rotation |")
    print("|---|---|---|---|---|")
    for ranking in RANKINGS:
        columns = zip(*(rows[ranking] for rows in agreements), strict=True)
        print(f"| {ranking} | {' | '.join(spread(values, 2) for values in columns)} |")


def spread(values: list[float] | tuple[float, ...], digits: int = 4) -> str:
    """Mean ± standard deviation."""
    middle = f"{statistics.mean(values):.{digits}f}"
    return f"{middle} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else middle


if __name__ == "__main__":
    main()
