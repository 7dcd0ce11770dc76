"""Narrower attention heads with no extra matrix product: query/key and value/output contraction.

The logits depend on W_q and W_k only through their product, and the output on W_v and W_o likewise, so the width
between them is free. Both truncations are the best of their rank in the metric of the calibration activations.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from spaces.operators.linalg import head_blocks, roots
from spaces.operators.low_rank import tail_sums
from spaces.operators.neurons import PrefixFactors, prefix_factors


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
