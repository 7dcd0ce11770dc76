"""Narrower attention heads with no extra matrix product: query/key and value/output contraction.

The logits depend on W_q and W_k only through their product, and the output on W_v and W_o likewise, so the width
between them is free. Both truncations are the best of their rank in the metric of the calibration activations.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from spaces.branches import Branch, Trait
from spaces.operators.attention import ATTENTION_TIMING, attention_cost, fill_attention, head_parts, resize_attention
from spaces.operators.base import FoundSites, OperatorSpec, SiteKind, Tensors, Variant, widths
from spaces.operators.least_squares import PrefixFactors, prefix_factors
from spaces.operators.linalg import head_blocks, roots, tail_sums
from spaces.operators.linears import linear_of
from spaces.operators.metric import metric_of, spread_of
from spaces.operators.selection import by_magnitude, permutations, uncorrected
from spaces.sites import Site, Skipped
from spaces.statistics import Moments

_QUERY_KEY_OBSTACLES: dict[Trait, str] = {
    "qk norm": "q/k normalisation acts between the projection and the product, so W_q and W_k cannot be contracted",
    "rotary": "rotary positions act between the projection and the product, so W_q and W_k cannot be contracted",
}
VALUE_OUTPUT_OBSTACLES: dict[Trait, str] = {
    "output norm": "a normalisation between the heads and the output projection mixes the head widths",
    "output gate": "a gate multiplies every channel between the heads and the output projection",
    "separate biases": "EVA's separate query and value biases are not handled",
}


def contraction_sites(branch: Branch, multiple: int) -> FoundSites:
    """Widths of heads: of queries and keys, of values and output."""
    dense: int = branch.module.head_dim  # type: ignore[assignment]
    step = max(1, min(multiple, dense // 8))
    choices = (*((step // 2,) if step > 1 else ()), *widths(dense, step))  # the smallest heads are most of a small budget
    refused = {"query_key": branch.obstacle(_QUERY_KEY_OBSTACLES), "value_output": branch.obstacle(VALUE_OUTPUT_OBSTACLES)}
    names: dict[Literal["query_key", "value_output"], str] = {"query_key": "qk", "value_output": "vo"}
    sites = [
        Site(name=f"{branch.path}.{short}", branch=branch.path, kind=kind, choices=choices)
        for kind, short in names.items()
        if refused[kind] is None
    ]
    reasons = [
        Skipped(name=f"{branch.path}.{short}", reason=reason) for kind, short in names.items() if (reason := refused[kind])
    ]
    return sites, reasons


@dataclass(frozen=True, kw_only=True)
class QueryKeyFactors:
    """Maps of each head's queries and keys into their shared basis, most important direction first.

    Attributes:
        query, key: [heads, d, d]; a width r keeps the first r rows: q' = query[:, :r] @ q.
        error: expected squared error of the logits of every width 0..d, in each head's unit, summed over heads, [d + 1].
    """

    query: Tensor
    key: Tensor
    error: Tensor


def query_key(query_second: Tensor, key_within: Tensor, unit: Tensor | None = None) -> QueryKeyFactors:
    """Contraction of queries and keys.

    Minimises E[(q.k - q'.k')^2] for independent q and k. A constant added to all keys of an image changes every logit
    of a query alike, which the softmax does not see; so the keys' moments are taken about each image's mean.

    Args:
        query_second: E[q q^T] per head, bias included, [heads, d, d].
        key_within: covariance of k about its image's mean, per head, [heads, d, d].
        unit: what a squared error of one head's logits costs, [heads]; None for 1.
    """
    q_root, q_inverse = roots(query_second)
    k_root, k_inverse = roots(key_within)
    u, sigma, vt = torch.linalg.svd(q_root @ k_root)
    scale = sigma.sqrt().unsqueeze(-1)
    energy = sigma.square() if unit is None else unit.unsqueeze(-1) * sigma.square()
    return QueryKeyFactors(
        query=scale * (u.mT @ q_inverse),
        key=scale * (vt @ k_inverse),
        error=tail_sums(energy.sum(0)),
    )


@dataclass(frozen=True, kw_only=True)
class ValueOutputFactors:
    """Basis of each head's values, and the output projection for every width.

    Attributes:
        value: [heads, d, d]; a width r keeps the first r rows: v' = value[:, :r] @ v.
        output: factors of the output projection over the new coordinates in component-major order (component 0 of
            every head, then component 1, ...), so that a width r is the prefix of r x heads columns.
    """

    value: Tensor
    output: PrefixFactors


def value_output(weight: Tensor, covariance: Tensor, heads: int, metric: Tensor | None = None) -> ValueOutputFactors:
    """Contraction of values and output projection.

    Each head's values are rotated to the axes along which its output contributes most; the output projection is then
    solved jointly over all heads, so that what one head loses is made up by correlated others.

    Args:
        weight: output projection W_o, [m, heads * d].
        covariance: of the concatenated head outputs, [heads * d, heads * d].
        heads: number of heads.
        metric: [m, m], what an error of the outputs costs; None for the Euclidean one.
    """
    width = weight.shape[1] // heads
    root, inverse = roots(head_blocks(covariance, heads))
    per_head = weight.reshape(-1, heads, width).transpose(0, 1)
    out_root = roots(metric)[0] if metric is not None else None
    seen = per_head @ root
    _, _, vt = torch.linalg.svd(seen if out_root is None else out_root @ seen, full_matrices=False)
    value = vt @ inverse
    back = root @ vt.mT
    interleaved = (per_head @ back).permute(1, 2, 0).reshape(weight.shape[0], -1)
    rotation = torch.block_diag(*value)  # type: ignore[no-untyped-call]
    rotated = (rotation @ covariance @ rotation.T).reshape(heads, width, heads, width)
    rotated = rotated.permute(1, 0, 3, 2).reshape(heads * width, heads * width)
    return ValueOutputFactors(value=value, output=prefix_factors(interleaved, rotated, out_root))


def _contract_query_key(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensors:
    assert moments is not None and moments.heads is not None
    unit = None if moments.heads.unit is None else moments.heads.unit.to(device)
    factors = query_key(moments.heads.query.to(device), moments.heads.key.to(device), unit)
    return {"query": factors.query, "key": factors.key, "error": factors.error}


def _contract_value_output(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensors:
    weight, bias = linear_of(dense, f"{site.branch}.proj")
    count = weight.shape[1] // site.dense
    spread = spread_of(moments, bias).to(device)
    factors = value_output(weight.to(device).double(), spread, count, metric_of(moments, device))
    assert moments is not None
    output = factors.output
    return {
        "value": factors.value,
        "projected": output.projected,
        "triangle": output.triangle,
        "error": output.error,
        "mean": moments.mean,
    }


def query_key_magnitude(dense: nn.Module, site: Site) -> Tensor:
    """Scores by weight norms: those of a query times those of its key. [heads, d]"""
    _, (query, key, _), _ = head_parts(dense, site.branch)
    return query.square().sum(-1) * key.square().sum(-1)


def value_output_magnitude(dense: nn.Module, site: Site) -> Tensor:
    """Scores by weight norms: what comes in times what goes out. [heads, d]"""
    count, (_, _, value), _ = head_parts(dense, site.branch)
    weight, _ = linear_of(dense, f"{site.branch}.proj")
    return value.square().sum(-1) * weight.square().sum(0).reshape(count, -1)


def _select_query_key(dense: nn.Module, site: Site, scores: Tensor) -> Tensors:
    basis, kept = permutations(scores)
    return {"query": basis, "key": basis.clone(), "error": tail_sums(kept.sum(0))}


def _select_value_output(dense: nn.Module, site: Site, scores: Tensor) -> Tensors:
    weight, _ = linear_of(dense, f"{site.branch}.proj")
    basis, kept = permutations(scores)
    output = weight.cpu().reshape(weight.shape[0], scores.shape[0], -1).permute(1, 2, 0)
    interleaved = (basis @ output).permute(2, 1, 0).flatten(1)
    return uncorrected(interleaved, kept.T.flatten()) | {"value": basis}


CONTRACT = OperatorSpec(
    name="contract",
    sites=contraction_sites,
    kinds={
        "query_key": SiteKind(
            counts="width per head",
            readers=("qkv",),
            variants={
                "contraction": Variant(compute=_contract_query_key, needs=frozenset({"moments", "heads"})),
                "magnitude": by_magnitude(query_key_magnitude, _select_query_key),
            },
            select=_select_query_key,
        ),
        "value_output": SiteKind(
            counts="width per head",
            readers=("proj",),
            variants={
                "contraction": Variant(compute=_contract_value_output),
                "magnitude": by_magnitude(value_output_magnitude, _select_value_output),
            },
            select=_select_value_output,
        ),
    },
    resize=resize_attention,
    fill=fill_attention,
    cost=attention_cost,
    timing=ATTENTION_TIMING,
)
