"""Linear layers of low rank: truncated SVD in the metrics of inputs and outputs, so that the error that counts is the model's.

Source: data-aware low rank as in DRONE (Chen et al. 2021) and SVD-LLM (Wang et al. 2024); derivation in
docs/operators.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from spaces.branches import ATTENTION, Branch, Trait
from spaces.modules import LowRankLinear
from spaces.operators.base import NOTHING, Count, FoundSites, OperatorSpec, SiteKind, Sizes, Tensors, Timing, Tokens, Variant
from spaces.operators.linalg import roots, tail_sums
from spaces.operators.linears import fill_linear, linear_of, shifted
from spaces.operators.metric import metric_of, spread_of
from spaces.sites import Role, Site, Skipped
from spaces.statistics import Moments

_LINEARS: dict[Role, tuple[str, ...]] = {"attention": ("qkv", "proj"), "ffn": ("fc1", "fc2")}
_OBSTACLES: dict[Trait, str] = {"separate biases": "EVA's separate query and value biases are not handled"}


def rank_sites(branch: Branch, multiple: int) -> FoundSites:
    """Per linear layer its rank."""
    if obstacle := branch.obstacle(_OBSTACLES):
        return [], [Skipped(name=branch.path, reason=obstacle)]
    sites, skipped = [], []
    for part in _LINEARS[branch.role]:
        name, linear = f"{branch.path}.{part}", getattr(branch.module, part, None)
        if not isinstance(linear, nn.Linear):
            skipped.append(Skipped(name=name, reason=f"{type(branch.module).__name__} has no single linear layer there"))
            continue
        rows, columns = linear.out_features, linear.in_features
        # A rank at break-even, mn / (m + n), costs as much as the dense layer; only smaller ones are offered.
        last = (rows * columns - 1) // (rows + columns)
        ranks = tuple(range(multiple, last + 1, multiple)) or (max(1, last),)
        choices = (*ranks, min(rows, columns))
        sites.append(Site(name=name, branch=branch.path, kind="rank", choices=choices, linear=(rows, columns)))
    return sites, skipped


def _resize_linears(model: nn.Module, path: str, sizes: Sizes, moved: Sizes) -> None:
    for part, rank in moved.items():
        linear = model.get_submodule(f"{path}.{part}")
        assert isinstance(linear, nn.Linear)
        low_rank = LowRankLinear(linear.in_features, linear.out_features, rank, bias=linear.bias is not None)
        model.set_submodule(f"{path}.{part}", low_rank)


@dataclass(frozen=True, kw_only=True)
class LowRankFactors:
    """Factors of a weight W [m, n] for every rank r up to k = min(m, n): keep the first r columns, or rows.

    Attributes:
        up: R^-1 U sqrt(Sigma), [m, k], R the root of the outputs' metric.
        down: sqrt(Sigma) V^T S^-1, [k, n], S the root of the inputs' covariance.
        error: expected squared output error, in the metric, of every rank 0..k, [k + 1]; the sum of the left-out squared
            singular values.
    """

    up: Tensor
    down: Tensor
    error: Tensor


def factorise(weight: Tensor, covariance: Tensor | None = None, metric: Tensor | None = None) -> LowRankFactors:
    """Best approximations of ``weight @ x`` of every rank, for inputs of this covariance.

    Args:
        weight: [m, n].
        covariance: [n, n] of the inputs; None for the plain SVD, which takes all directions as equally frequent.
        metric: [m, m], what an error of the outputs costs; None for the Euclidean one.
    """
    root, inverse = roots(covariance) if covariance is not None else (None, None)
    out_root, out_inverse = roots(metric) if metric is not None else (None, None)
    weight = out_root @ weight if out_root is not None else weight
    u, sigma, vt = torch.linalg.svd(weight @ root if root is not None else weight, full_matrices=False)
    up = u * sigma.sqrt()
    down = sigma.sqrt().unsqueeze(1) * vt
    return LowRankFactors(
        up=out_inverse @ up if out_inverse is not None else up,
        down=down @ inverse if inverse is not None else down,
        error=tail_sums(sigma.square()),
    )


def _factorise_whitened(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensors:
    weight, bias = linear_of(dense, site.name)
    factors = factorise(weight.to(device).double(), spread_of(moments, bias).to(device), metric_of(moments, device))
    assert moments is not None
    return {"up": factors.up, "down": factors.down, "error": factors.error, "mean": moments.mean}


def _factorise_plain(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensors:
    """Truncated SVD of the weight alone."""
    weight, _ = linear_of(dense, site.name)
    factors = factorise(weight.to(device).double())
    return {"up": factors.up, "down": factors.down, "error": factors.error, "mean": torch.zeros(weight.shape[1])}


def _fill_ranks(dense: nn.Module, model: nn.Module, branch: str, sizes: Sizes, factors: Mapping[str, Tensors]) -> None:
    for part, rank in sizes.items():
        linear, found = model.get_submodule(f"{branch}.{part}"), factors[part]
        if isinstance(linear, LowRankLinear):
            weight, bias = linear_of(dense, f"{branch}.{part}")
            up, down = found["up"][:, :rank], found["down"][:rank]
            fill_linear(linear.down, down, None)
            fill_linear(linear.up, up, shifted(bias, weight, found["mean"], up, down @ found["mean"]))


def linears_cost(branch: nn.Module, sites: Sequence[Site], tokens: Tokens) -> Callable[[Sizes], Count]:
    """MACs and parameters of the linear layers of a branch as a function of their ranks, and of the rows that stay whole."""
    shapes = {site.part: site.linear for site in sites if site.kind == "rank" and site.linear is not None}
    is_attention = isinstance(branch, ATTENTION)
    seen = {part: _tokens_of(part, is_attention, tokens) for part in shapes}
    return partial(_count, shapes=shapes, seen=seen)


def _tokens_of(part: str, is_attention: bool, tokens: Tokens) -> tuple[int, int]:
    """Tokens that a linear reads, and those of them that it computes the first third of its rows for: the queries."""
    if not is_attention:
        return tokens.left, tokens.left
    return (tokens.seen, tokens.asked) if part == "qkv" else (tokens.asked, tokens.asked)


def _count(sizes: Sizes, shapes: Mapping[str, tuple[int, int]], seen: Mapping[str, tuple[int, int]]) -> Count:
    """Linear layers of which some rows may be whole, the others of low rank."""
    macs, weights = 0, 0
    for part, (rows, columns) in shapes.items():
        rank, whole = sizes[part], sizes.get(f"{part}_rows")
        (read, asked), queries = seen[part], rows // 3
        if whole == rows or (whole is None and rank == min(rows, columns)):
            layer, saved = rows * columns, queries * columns
        elif whole is None:
            layer, saved = rank * (columns + rows), queries * rank
        else:  # whole rows are anywhere among the others, so all are computed
            layer, saved = whole * columns + rank * (columns + rows - whole), 0
        macs += read * layer - (read - asked) * saved
        weights += layer
    return macs, weights


LOW_RANK = OperatorSpec(
    name="low-rank",
    sites=rank_sites,
    kinds={
        "rank": SiteKind(
            counts="rank",
            variants={
                "whitened": Variant(compute=_factorise_whitened),
                "plain": Variant(compute=_factorise_plain, needs=NOTHING),
            },
        ),
    },
    resize=_resize_linears,
    fill=_fill_ranks,
    cost=linears_cost,
    timing=Timing(together=False, continuous=False),  # linear layers take their time one after the other
)
