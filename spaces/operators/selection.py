"""Keeping what has the largest scores, with no correction: what papers do, and recipes do with weights that they trained.

The tensors are those of the corrected ways, so that one function fills models from both. The errors among them are sums of the
scores left out, in their unit.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from spaces.operators.base import NOTHING, Slice, Tensors, Variant
from spaces.operators.linalg import tail_sums
from spaces.sites import Site


def in_order(dense: nn.Module, site: Site, scores: Tensor) -> Tensors:
    """Factors of a site that keeps a prefix of an order; scores [n]."""
    order = scores.argsort(descending=True, stable=True)
    return {"order": order, "error": tail_sums(scores[order])}


def permutations(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Per head the permutation that sorts its channels, and the sorted scores: [heads, d] -> [heads, d, d], [heads, d]."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return torch.eye(scores.shape[-1])[order], scores.gather(-1, order)


def uncorrected(weight: Tensor, scores: Tensor) -> Tensors:
    """Factors whose prefixes are the plain columns of `weight`, and which leave the bias alone."""
    return {"projected": weight, "error": tail_sums(scores), "mean": torch.zeros(weight.shape[1])}


def by_magnitude(scores: Callable[[nn.Module, Site], Tensor], keep: Slice) -> Variant:
    """The variant that keeps what has the largest weights; it needs no images."""
    return Variant(compute=lambda dense, site, moments, device: keep(dense, site, scores(dense, site).cpu()), needs=NOTHING)
