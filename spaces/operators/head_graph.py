"""GOHSP's graph ranking of attention heads: the stationary distribution of a Markov chain over a layer's heads.

Source: GOHSP, arXiv 2301.05345, section 3.1. The heads of a layer are the nodes of a graph; the chain moves from a head to
another with a probability that grows with the similarity of their attention outputs, so it stays longest at the heads
that stand for many others. The paper leaves the similarity open: here it is ||C_gh|| / sqrt(||C_gg|| ||C_hh||), with C_gh the
second moments between the outputs of heads g and h over all tokens of the calibration images and the Frobenius norm: 1 for
heads that are rotations of each other, whatever basis each head computes in. A head is not its own neighbour.
"""

import torch
from torch import Tensor

_STEPS = 10_000
_TOLERANCE = 1e-12


def similarity(second: Tensor, heads: int) -> Tensor:
    """Similarity in [0, 1] between the outputs of heads, with a zero diagonal. Shape [heads, heads].

    Args:
        second: E[o o^T] of the concatenated head outputs, [heads * d, heads * d].
        heads: number of heads.
    """
    width = second.shape[0] // heads
    norms = second.reshape(heads, width, heads, width).square().sum((1, 3)).sqrt()
    scale = torch.outer(norms.diagonal(), norms.diagonal()).sqrt()
    found = torch.where(scale > 0, norms / scale.clamp_min(torch.finfo(scale.dtype).tiny), 0.0)
    return found - torch.diag(found.diagonal())


def transition(weights: Tensor) -> Tensor:
    """Transition probabilities of a chain that leaves a node by these non-negative weights, [n, n]; rows sum to one.

    A row of zeros (a head that is like no other) becomes uniform.
    """
    total = weights.sum(1, keepdim=True)
    return torch.where(total > 0, weights / total.clamp_min(torch.finfo(weights.dtype).tiny), 1 / weights.shape[0])


def stationary(probabilities: Tensor) -> Tensor:
    """Stationary distribution pi = pi P by power iteration, [n]; sums to one.

    The iteration runs on (P + I) / 2, which has the same stationary distribution and no period.

    Args:
        probabilities: transition matrix P, [n, n], rows sum to one.
    """
    n = probabilities.shape[0]
    lazy = (probabilities + torch.eye(n, dtype=probabilities.dtype, device=probabilities.device)) / 2
    pi = torch.full((n,), 1 / n, dtype=probabilities.dtype, device=probabilities.device)
    for _ in range(_STEPS):
        following = pi @ lazy
        following = following / following.sum()
        if float((following - pi).abs().sum()) < _TOLERANCE:
            return following
        pi = following
    return pi


def graph_scores(second: Tensor, heads: int) -> Tensor:
    """Importance of every head: the stationary distribution of the chain over the heads of one layer. Shape [heads]."""
    return stationary(transition(similarity(second, heads)))
