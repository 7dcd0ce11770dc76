"""Rankings of whole attention heads: which of them a layer gives up first.

Scores are larger for more important heads, and comparable within one layer only.
"""

import torch
from torch import Tensor

from spaces.operators.head_graph import graph_scores
from spaces.operators.linalg import head_blocks, triangle
from spaces.operators.neurons import DAMPING

__all__ = ["elimination_scores", "energy_scores", "graph_scores", "magnitude_scores", "taylor_scores"]


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
