"""Truncated SVD of a linear layer in the metrics of its inputs and outputs: the error that counts is the model's.

Source: data-aware low rank as in DRONE (Chen et al. 2021) and SVD-LLM (Wang et al. 2024); derivation in
docs/operators.md.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from spaces.operators.linalg import roots


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


def tail_sums(energy: Tensor) -> Tensor:
    """Sum of what is left out after keeping the first r entries, r = 0..n. Shape [n] -> [n + 1]; the last is 0."""
    tails = energy.flip(0).cumsum(0).flip(0)
    return torch.cat([tails, tails.new_zeros(1)])
