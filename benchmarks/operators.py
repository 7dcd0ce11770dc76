"""Which operator loses least at the same MACs, with no fine-tune: error of the last feature of a pretrained ViT-S/14.

    python benchmarks/fashion_mnist.py
    python benchmarks/vit_small.py
    OMP_NUM_THREADS=1 python benchmarks/operators.py

Every block is cut alike. The error is the squared difference of `forward_features` over the squared norm of the dense
model's, on held-out images; it says nothing about accuracy after a fine-tune. A seed draws the calibration images and the
held-out ones from Fashion-MNIST's training images, resized to 70x70. The output is written anew after every draw.
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

import timm
import torch
import vit_small
from torch import Tensor, nn
from torchvision.datasets import FashionMNIST

from objectives.cost.closed_form import CostModel, cost_model
from spaces.factors import Factors
from spaces.operators.contraction import value_output_magnitude
from spaces.operators.least_squares import prefix_factors
from spaces.operators.linalg import blended, roots
from spaces.operators.linears import linear_of
from spaces.operators.metric import METRIC_DAMPING
from spaces.operators.registry import input_of, select, variant_of
from spaces.sites import Kind, Role, Site, Space
from spaces.statistics import Moments, collect
from spaces.vit import describe

SHARES = (0.75, 0.6, 0.5)
_BATCH = 64

# What the moments count: nothing more, as papers do; what matters at the model's output, as the engine does; halves of that.
PLAIN, WEIGHTED, TOKENS, OUTPUTS = "layer by layer", "weighted by gradients", "only tokens weighted", "only outputs weighted"

# Name -> space and variants of its sites, by role of the branch.
Ways = dict[Role, dict[str, tuple[str, dict[Kind, str]]]]
WAYS: Ways = {
    "attention": {"whitened SVD": ("low-rank", {}), "contraction": ("contract", {})},
    "ffn": {
        "whitened SVD": ("low-rank", {}),
        "variance order": ("contract", {"ffn_hidden": "variance"}),
        "optimal-brain order": ("contract", {}),
    },
}
_PLAIN_SVD: tuple[str, dict[Kind, str]] = ("low-rank", {"rank": "plain"})
_MAGNITUDE: dict[Kind, str] = {"query_key": "magnitude", "value_output": "magnitude", "ffn_hidden": "magnitude"}
UNCORRECTED: Ways = {
    "attention": {"plain SVD": _PLAIN_SVD, "magnitude widths": ("contract", _MAGNITUDE)},
    "ffn": {"plain SVD": _PLAIN_SVD, "magnitude neurons": ("contract", _MAGNITUDE)},
}
PAIRS = (("whitened SVD", "whitened SVD"), ("whitened SVD", "optimal-brain order"), ("contraction", "optimal-brain order"))
RANKINGS = ("elimination", "energy", "magnitude", "taylor", "graph")
_TABLES: dict[Role, str] = {"attention": "attention", "ffn": "FFN"}

Row = tuple[str, str, str]  # table, size asked for, name
Scores = dict[tuple[str, str, str, str], list[list[float]]]  # row and share of MACs kept -> columns of the table, per draw


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One row of a table: what is built, and the share of the dense model's MACs that it keeps."""

    row: Row
    build: Callable[[], nn.Module]
    kept: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=vit_small.OUTPUT)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--calibration", type=int, default=768, help="images per draw")
    parser.add_argument("--held-out", type=int, default=250, help="images per draw")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("operators.md"))
    arguments = parser.parse_args()
    dense, images = vit_small.load(arguments.weights), FashionMNIST(arguments.data_dir, train=True).data
    scores: Scores = defaultdict(list)
    agreements: list[dict[str, list[float]]] = []
    for seed in arguments.seeds:
        start = time.perf_counter()
        drawn = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]
        drawn = vit_small.prepared(drawn[: arguments.calibration + arguments.held_out])
        draw = Draw(dense, drawn[: arguments.calibration], drawn[arguments.calibration :])
        for candidate in candidates(draw):
            key = *candidate.row, f"{candidate.kept:.1%}"
            scores[key].append(draw.score(candidate))
            print(seed, *key, *scores[key][-1], sep=" | ", file=sys.stderr, flush=True)
        agreements.append(ranking_rows(draw))
        print(f"seed {seed}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        versions = (
            f"torch {torch.__version__}, timm {timm.__version__}, {torch.get_num_threads()} threads, {len(agreements)} draws"
        )
        arguments.output.write_text("\n".join([versions, *report(scores, agreements)]) + "\n")


class Draw:
    """One draw of images: the moments of the dense model, the factors computed from them, and the features to compare with."""

    def __init__(self, dense: nn.Module, calibration: Tensor, held_out: Tensor) -> None:
        self.dense, self.held_out = dense, held_out
        plain, weighted = (all_moments(dense, calibration, gradients) for gradients in (False, True))
        self.moments: dict[str, dict[str, Moments]] = {
            PLAIN: plain,
            WEIGHTED: weighted,
            TOKENS: {name: replace(entry, metric=None) for name, entry in weighted.items()},
            OUTPUTS: {name: replace(entry, metric=weighted[name].metric) for name, entry in plain.items()},
        }
        self.reference = self._features(dense)
        self._tensors: dict[tuple[str, str, str], dict[str, Tensor]] = {}

    def factors(self, part: Role, way: tuple[str, dict[Kind, str]], weighting: str, multiple: int = 8) -> Factors:
        """Factors of one part of a space; those of a site are computed once per draw."""
        space, variants = part_space(self.dense, way[0], part, multiple), way[1]
        tensors: dict[str, Tensor] = {}
        for site in space.sites:
            key = site.name, variants.get(site.kind, ""), weighting
            if key not in self._tensors:
                moments = self.moments[weighting][input_of(self.dense, site)]
                found = variant_of(site.kind, variants).compute(self.dense, site, moments, torch.device("cpu"))
                self._tensors[key] = {name: value.float() for name, value in found.items()}
            tensors |= {f"{site.name}.{name}": value for name, value in self._tensors[key].items()}
        return Factors(self.dense, space, tensors)

    def score(self, candidate: Candidate) -> list[float]:
        """Error over all tokens, of the class token, and over all tokens per share of MACs removed."""
        lost = self._features(candidate.build()) - self.reference
        parts = (lost, self.reference), (lost[:, 0], self.reference[:, 0])
        tokens, class_token = (float(part.square().sum() / whole.square().sum()) for part, whole in parts)
        return [tokens, class_token, tokens / (1 - candidate.kept)]

    def _features(self, model: nn.Module) -> Tensor:
        with torch.inference_mode():
            return torch.cat([model.forward_features(batch) for batch in self.held_out.split(_BATCH)])  # type: ignore[operator]


def all_moments(dense: nn.Module, images: Tensor, gradients: bool) -> dict[str, Moments]:
    """Moments that any of the ways asks for, in one pass."""
    start = time.perf_counter()
    branches = list(part_space(dense, "heads", "attention").branches)
    linears = [f"{name}.{linear}" for name in branches for linear in ("qkv", "proj")]
    linears += [f"{name}.{linear}" for name in part_space(dense, "contract", "ffn").branches for linear in ("fc1", "fc2")]
    count: int = dense.get_submodule(branches[0]).num_heads  # type: ignore[assignment]
    heads, salient = ({f"{name}.{linear}": count for name in branches} for linear in ("qkv", "proj"))
    moments = collect(dense, linears, images.split(_BATCH), heads, salient if gradients else None, gradients)
    print(f"calibration, gradients {gradients}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    return moments


@cache
def part_space(dense: nn.Module, name: str, part: Role, multiple: int = 8) -> Space:
    """A space with what cuts the branches of one role, and nothing else."""
    space = describe(dense, name, multiple)
    branches = {path: rivals for path, rivals in space.rivals.items() if space.roles[path] == part}
    return replace(space, branches=branches, tokens=())


@cache
def costs(dense: nn.Module, name: str, part: Role, multiple: int = 8) -> CostModel:
    return cost_model(dense, part_space(dense, name, part, multiple))


def candidates(draw: Draw) -> Iterator[Candidate]:
    """Everything that is measured, table by table."""
    for share, weighting in itertools.product(SHARES, (PLAIN, WEIGHTED)):
        yield from cut(draw, WAYS, PAIRS, share, weighting, f", {weighting}")
    for share in SHARES:
        yield from cut(draw, UNCORRECTED, tuple(zip(*UNCORRECTED.values(), strict=True)), share, PLAIN)
    yield from whole_heads(draw)
    yield from heads_and_widths(draw)
    yield from neuron_corrections(draw)
    halves = {part: {name: way for name, way in ways.items() if name in PAIRS[-1]} for part, ways in WAYS.items()}
    for weighting in (TOKENS, OUTPUTS):
        yield from cut(draw, halves, (), 0.5, weighting, f", {weighting}")


def cut(
    draw: Draw, ways: Ways, pairs: tuple[tuple[str, str], ...], share: float, weighting: str, note: str = ""
) -> Iterator[Candidate]:
    """Every way to cut one part, and pairs of them: all sites at the size nearest to `share`."""
    parts: dict[Role, dict[str, Candidate]] = {}
    for part, table in _TABLES.items():
        for name, way in ways[part].items():
            factors = draw.factors(part, way, weighting)
            sizes = {site: site.nearest(share) for site in factors.space.sites}
            found = sized(draw, factors, (table, f"{share:.0%}", name + note), sizes)
            parts.setdefault(part, {})[name] = found
            yield found
    for first, second in pairs:
        yield together(parts["attention"][first], parts["ffn"][second], f"{first} + {second}{note}")


def sized(draw: Draw, factors: Factors, row: Row, sizes: dict[Site, int], multiple: int = 8) -> Candidate:
    """These sizes, the other sites dense."""
    space = factors.space
    allocation = space.identity().replace({site.name: size for site, size in sizes.items()})
    part = space.roles[space.sites[0].branch]
    cost = costs(draw.dense, space.name, part, multiple)
    kept = cost.count(allocation, "macs") / cost.dense["macs"]
    return Candidate(row=row, build=lambda: factors.build(allocation), kept=kept)


def together(attention: Candidate, ffn: Candidate, name: str) -> Candidate:
    """Attention of one candidate, FFN of another."""

    def build() -> nn.Module:
        model, other = attention.build(), ffn.build()
        for block, source in zip(model.blocks, other.blocks, strict=True):  # type: ignore[arg-type]
            block.mlp = source.mlp
        return model

    return Candidate(row=("both", attention.row[1], name), build=build, kept=attention.kept + ffn.kept - 1)


def whole_heads(draw: Draw) -> Iterator[Candidate]:
    """Every ranking of heads with the output projection solved anew; the first with less, to see what the solution brings."""
    for ranking, level in [*((ranking, "full") for ranking in RANKINGS), (RANKINGS[0], "none"), (RANKINGS[0], "mean")]:
        factors = draw.factors("attention", ("heads", {"heads": ranking}), WEIGHTED)
        factors = factors if level == "full" else unsolved(draw, factors, level)
        sites = [site for site in factors.space.sites if site.kind == "heads"]
        for count in range(sites[0].dense - 1, sites[0].dense // 2 - 1, -1):
            row = "heads", f"{count} of {sites[0].dense}", f"{ranking}, correction: {level}"
            yield sized(draw, factors, row, dict.fromkeys(sites, count))


def heads_and_widths(draw: Draw) -> Iterator[Candidate]:
    """Fewer heads and narrower ones at about the same MACs of attention; widths to the nearest unit."""
    factors = draw.factors("attention", ("heads", {}), WEIGHTED, multiple=1)
    total = next(site.dense for site in factors.space.sites if site.kind == "heads")
    for share in SHARES:
        for count in range(total - 1, int(share * total), -1):
            per_head = share * total / count
            sizes = {site: count if site.kind == "heads" else site.nearest(per_head) for site in factors.space.sites}
            row = "heads and widths", f"{share:.0%}", f"{count} heads of {max(sizes.values())}"
            yield sized(draw, factors, row, sizes, multiple=1)


def neuron_corrections(draw: Draw) -> Iterator[Candidate]:
    """Half the neurons in optimal-brain order, with less than the full correction."""
    for level in ("none", "mean"):
        factors = unsolved(draw, draw.factors("ffn", WAYS["ffn"]["optimal-brain order"], WEIGHTED), level)
        sizes = {site: site.nearest(0.5) for site in factors.space.sites}
        yield sized(draw, factors, ("neurons", "50%", f"optimal-brain order, correction: {level}"), sizes)


def unsolved(draw: Draw, factors: Factors, level: str) -> Factors:
    """The same order of neurons or heads with no least squares; the mean of what is lost in the bias, or nothing ("none")."""
    tensors = dict(factors.tensors)
    for site in factors.space.sites:
        if site.kind in ("ffn_hidden", "value_output"):
            order = tensors.get(f"{site.name}.order")
            scores = value_output_magnitude(draw.dense, site) if order is None else site.dense - order.argsort()
            found = select(draw.dense, site, scores)
            if level == "mean":
                found["mean"] = draw.moments[WEIGHTED][input_of(draw.dense, site)].mean.float()
            tensors |= {f"{site.name}.{key}": value for key, value in found.items()}
    return Factors(factors.dense, factors.space, tensors)


def ranking_rows(draw: Draw) -> dict[str, list[float]]:
    """Per ranking: closed-form error of half the heads over that of the best half, mean and worst; layers with the best."""
    rows = {}
    sites = [site for site in part_space(draw.dense, "heads", "attention").sites if site.kind == "heads"]
    errors = {site: subset_errors(draw, site) for site in sites}
    for ranking in RANKINGS:
        tensors = draw.factors("attention", ("heads", {"heads": ranking}), WEIGHTED).tensors
        kept = {site: frozenset(tensors[f"{site.name}.order"][: site.dense // 2].int().tolist()) for site in sites}
        ratios = [errors[site][kept[site]] / min(errors[site].values()) for site in sites]
        rows[ranking] = [statistics.mean(ratios), max(ratios), ratios.count(1.0)]
    return rows


def subset_errors(draw: Draw, site: Site) -> dict[frozenset[int], float]:
    """Expected error in nats of the attention's output, once corrected, for every choice of half of the heads."""
    reader = input_of(draw.dense, site)
    weight, moments = linear_of(draw.dense, reader)[0].double(), draw.moments[WEIGHTED][reader]
    assert moments.metric is not None
    root = roots(blended(moments.metric, METRIC_DAMPING))[0]
    columns = torch.arange(weight.shape[1]).reshape(site.dense, -1)
    errors = {}
    for kept in itertools.combinations(range(site.dense), site.dense // 2):
        order = columns[[*kept, *(head for head in range(site.dense) if head not in kept)]].flatten()
        found = prefix_factors(weight[:, order], moments.covariance[order][:, order], root)
        errors[frozenset(kept)] = float(found.error[weight.shape[1] // 2])
    return errors


def report(scores: Scores, agreements: list[dict[str, list[float]]]) -> Iterator[str]:
    """Tables in Markdown: mean and standard deviation over the draws."""
    for table in dict.fromkeys(key[0] for key in scores):
        yield f"\n### {table}\n"
        yield "| kept | operator | of all MACs | error, all tokens | error, class token | per share of MACs removed |"
        yield "|---|---|---|---|---|---|"
        for key, found in ((key, found) for key, found in scores.items() if key[0] == table):
            yield f"| {' | '.join(key[1:])} | {' | '.join(map(spread, zip(*found, strict=True)))} |"
    yield "\n### rankings of heads, half of them, layer by layer\n"
    yield "| ranking | error over the best subset's, mean | worst | layers with the best subset |"
    yield "|---|---|---|---|"
    for ranking in RANKINGS:
        columns = zip(*(rows[ranking] for rows in agreements), strict=True)
        yield f"| {ranking} | {' | '.join(spread(values, 2) for values in columns)} |"


def spread(values: tuple[float, ...], digits: int = 4) -> str:
    """Mean ± standard deviation."""
    middle = f"{statistics.mean(values):.{digits}f}"
    return f"{middle} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else middle


if __name__ == "__main__":
    main()
