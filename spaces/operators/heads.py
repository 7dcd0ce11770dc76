"""Fewer attention heads: a ranking says which of them a layer gives up first, and the output projection makes up for them.

Scores are larger for more important heads, and comparable within one layer only.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from spaces.branches import Branch, Trait
from spaces.operators.attention import ATTENTION_TIMING, attention_cost, fill_attention, resize_attention
from spaces.operators.base import NOTHING, Compute, FoundSites, OperatorSpec, SiteKind, Tensors, Variant, widths
from spaces.operators.contraction import VALUE_OUTPUT_OBSTACLES, contraction_sites
from spaces.operators.head_graph import graph_scores
from spaces.operators.least_squares import prefix_factors
from spaces.operators.linalg import DAMPING, head_blocks, triangle
from spaces.operators.linears import linear_of
from spaces.operators.metric import root_of, seen_through, spread_of
from spaces.operators.selection import in_order
from spaces.sites import Site, Skipped
from spaces.statistics import Moments

_OBSTACLES: dict[Trait, str] = {
    **VALUE_OUTPUT_OBSTACLES,
    "shared keys": "several heads share their keys and values",
    "rotary": "rotary positions may differ from head to head",
}


def _head_sites(branch: Branch, multiple: int) -> FoundSites:
    """Whole heads, and the widths of those that stay."""
    sites, reasons = contraction_sites(branch, multiple)
    name = f"{branch.path}.heads"
    obstacle = branch.obstacle(_OBSTACLES)
    if obstacle:
        return sites, [*reasons, Skipped(name=name, reason=obstacle)]
    heads: int = branch.module.num_heads  # type: ignore[assignment]
    return [Site(name=name, branch=branch.path, kind="heads", choices=widths(heads, 1)), *sites], reasons


def energy_scores(weight: Tensor, covariance: Tensor, heads: int) -> Tensor:
    """Energy that each head alone brings to the output, tr(W_h C_hh W_h^T). Shape [heads].

    Args:
        weight: output projection, [m, heads * d].
        covariance: of the concatenated head outputs, [heads * d, heads * d].
        heads: number of heads.
    """
    blocks, parts = head_blocks(covariance, heads), weight.reshape(weight.shape[0], heads, -1).transpose(0, 1)
    return torch.einsum("hmd,hde,hme->h", parts, blocks, parts)


def magnitude_scores(qkv: Tensor, weight: Tensor, heads: int) -> Tensor:
    """Squared weights of a head's queries, keys, values and output projection. Shape [heads].

    Args:
        qkv: weight of the fused projection, [3 * heads * d, dim].
        weight: output projection, [m, heads * d].
        heads: number of heads.
    """
    inner = qkv.square().reshape(3, heads, -1).sum((0, 2))
    return inner + weight.square().reshape(weight.shape[0], heads, -1).sum((0, 2))


def taylor_scores(saliency: Tensor, heads: int) -> Tensor:
    """First-order change of the loss when a head is removed, E|sum_i o_i dL/do_i| (Michel et al. 2019). Shape [heads].

    The loss here is the random scalar of spaces/statistics.py, so that no labels are needed.

    Args:
        saliency: E|sum over a group of x dL/dx| of the head outputs, one entry per head or per channel, [heads * k].
        heads: number of heads.
    """
    return saliency.reshape(heads, -1).sum(1)


def elimination_scores(weight: Tensor, covariance: Tensor, heads: int) -> Tensor:
    """Position in a greedy elimination: always the head goes that costs least once all the others compensate. Shape [heads].

    The cost of removing head P from what remains is tr(W_P (H_PP)^-1 W_P^T), with W the corrected weights and H the
    inverse covariance of the remaining heads: optimal brain surgery (Hassibi & Stork 1993) on blocks.
    """
    width = weight.shape[1] // heads
    inverse = torch.cholesky_inverse(triangle(covariance, DAMPING))
    weight, alive = weight.clone(), list(range(heads))
    scores = weight.new_zeros(heads)
    for position in range(heads):
        blocks = torch.linalg.inv(head_blocks(inverse, len(alive)))
        parts = weight.reshape(weight.shape[0], len(alive), width).transpose(0, 1)
        cheapest = int(torch.einsum("hmd,hde,hme->h", parts, blocks, parts).argmin())
        gone = torch.zeros(len(alive) * width, dtype=torch.bool, device=weight.device)
        gone[cheapest * width : (cheapest + 1) * width] = True
        solved = blocks[cheapest] @ inverse[gone][:, ~gone]
        weight = weight[:, ~gone] - weight[:, gone] @ solved
        inverse = inverse[~gone][:, ~gone] - inverse[~gone][:, gone] @ solved
        scores[alive.pop(cheapest)] = position
    return scores


def _order_heads(score: Callable[[nn.Module, Site, Moments | None, torch.device], Tensor]) -> Compute:
    """Factors of a ranking of heads: their order, and what is lost once the output projection makes up for the others."""

    def compute(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensors:
        order = score(dense, site, moments, device).argsort(descending=True, stable=True).cpu()
        if moments is None:
            return {"order": order, "error": torch.arange(site.dense, -1, -1)}  # heads lost: no images, no better measure
        weight, bias = linear_of(dense, f"{site.branch}.proj")
        columns = torch.arange(weight.shape[1]).reshape(site.dense, -1)[order].flatten().to(device)
        spread = spread_of(moments, bias).to(device)[columns][:, columns]
        factors = prefix_factors(weight.to(device).double()[:, columns], spread, root_of(moments, device))
        return {"order": order, "error": factors.error[:: weight.shape[1] // site.dense]}

    return compute


def _head_energy(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensor:
    weight, bias = linear_of(dense, f"{site.branch}.proj")
    weight = seen_through(root_of(moments, device), weight.to(device).double())
    return energy_scores(weight, spread_of(moments, bias).to(device), site.dense)


def _head_elimination(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensor:
    weight, bias = linear_of(dense, f"{site.branch}.proj")
    weight = seen_through(root_of(moments, device), weight.to(device).double())
    return elimination_scores(weight, spread_of(moments, bias).to(device), site.dense)


def _head_magnitude(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensor:
    qkv, _ = linear_of(dense, f"{site.branch}.qkv")
    weight, _ = linear_of(dense, f"{site.branch}.proj")
    return magnitude_scores(qkv, weight, site.dense)


def _head_taylor(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensor:
    assert moments is not None and moments.saliency is not None
    return taylor_scores(moments.saliency, site.dense)


def _head_graph(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensor:
    assert moments is not None
    return graph_scores(moments.second(), site.dense)


HEADS = OperatorSpec(
    name="heads",
    sites=_head_sites,
    kinds={
        "heads": SiteKind(
            counts="heads",
            readers=("proj",),
            variants={
                "elimination": Variant(compute=_order_heads(_head_elimination)),
                "energy": Variant(compute=_order_heads(_head_energy)),
                "magnitude": Variant(compute=_order_heads(_head_magnitude), needs=NOTHING),
                "taylor": Variant(compute=_order_heads(_head_taylor), needs=frozenset({"moments", "saliency"})),
                "graph": Variant(compute=_order_heads(_head_graph)),
            },
            select=in_order,
        ),
    },
    resize=resize_attention,
    fill=fill_attention,
    cost=attention_cost,
    timing=ATTENTION_TIMING,
)
