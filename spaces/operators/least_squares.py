"""Removing inputs of a linear layer with a closed-form correction: what the kept inputs can make up for.

Removing inputs P of y = W x and refitting the weights of the kept inputs S by least squares gives
W' = W C[:, S] C[S, S]^-1 and leaves the error tr(W_P (C_PP - C_PS C_SS^-1 C_SP) W_P^T), with C the inputs' covariance.
With the inputs in a fixed order every size is a prefix, and one Cholesky factorisation C = L L^T serves all of them:
W' = A[:, :s] L[:s, :s]^-1 with A = W L, and the error is the energy of the columns A[:, s:].
What an error of the outputs costs, a metric M on them, changes the order and the error (W becomes M^1/2 W), not the refit.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from spaces.operators.linalg import DAMPING, tail_sums, triangle


@dataclass(frozen=True, kw_only=True)
class PrefixFactors:
    """What every prefix of a layer's ordered inputs needs.

    Attributes:
        projected: A = W L, [m, n].
        triangle: lower Cholesky factor L of the covariance, [n, n].
        error: expected squared output error, in the metric, of every size 0..n after the correction, [n + 1].
    """

    projected: Tensor
    triangle: Tensor
    error: Tensor


def prefix_factors(weight: Tensor, covariance: Tensor, root: Tensor | None = None) -> PrefixFactors:
    """Factors for a weight [m, n] whose inputs, of covariance [n, n], are already in order of importance.

    Args:
        weight: [m, n].
        covariance: [n, n].
        root: [m, m], square root of the outputs' metric; None for the Euclidean one.
    """
    factor = triangle(covariance, DAMPING)
    projected = weight @ factor
    energy = (projected if root is None else root @ projected).square().sum(0)
    return PrefixFactors(projected=projected, triangle=factor, error=tail_sums(energy))


def prefix_weight(projected: Tensor, triangle: Tensor | None, size: int) -> Tensor:
    """Corrected weight [m, size] of the first `size` inputs; without a triangle, plain columns."""
    if triangle is None:
        return projected[:, :size]
    weight: Tensor = torch.linalg.solve_triangular(triangle[:size, :size], projected[:, :size], upper=False, left=False)
    return weight


def subset_weight(projected: Tensor, triangle: Tensor | None, kept: Tensor) -> Tensor:
    """Corrected weight [m, k] of any subset of the inputs, given by their indices [k] in the order of the factors.

    Least squares on the rows L_S of the triangle: C_SS = L_S L_S^T and W C_{:,S} = A L_S^T. In float64, because the
    product squares the triangle's condition number.
    """
    if triangle is None:
        return projected[:, kept]
    rows = triangle[kept].double()
    weight: Tensor = torch.linalg.solve(rows @ rows.T, rows @ projected.double().T)
    return weight.T.to(projected)
