"""Linear algebra that operators share: roots of covariance matrices that may be singular, their blocks, sums of tails."""

import torch
from torch import Tensor

# Directions whose variance is below this share of the largest are noise of the calibration sample: they are floored,
# so that their inverse root stays bounded.
FLOOR = 1e-7

# Ridge added to the covariance, as a share of its mean variance: bounds the corrected weights where neurons are
# nearly collinear on the calibration images.
DAMPING = 1e-4


def roots(covariance: Tensor, floor: float = FLOOR) -> tuple[Tensor, Tensor]:
    """Symmetric root and inverse root of a positive semi-definite matrix, eigenvalues floored at floor x the largest.

    Shapes: ``[..., d, d] -> ([..., d, d], [..., d, d])``. A zero matrix gets the identity twice.
    """
    values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
    largest = values[..., -1:]
    values = torch.where(largest > 0, values.clamp_min(0).maximum(floor * largest), torch.ones_like(values))
    root = (vectors * values.sqrt().unsqueeze(-2)) @ vectors.mT
    inverse = (vectors * values.rsqrt().unsqueeze(-2)) @ vectors.mT
    return root, inverse


def damped(covariance: Tensor, damping: float) -> Tensor:
    """`covariance` plus damping x its mean variance on the diagonal; the identity if it is zero. Shape [d, d]."""
    scale = covariance.diagonal().mean()
    if scale <= 0:
        return torch.eye(covariance.shape[0], dtype=covariance.dtype, device=covariance.device)
    return covariance + damping * scale * torch.eye(covariance.shape[0], dtype=covariance.dtype, device=covariance.device)


def head_blocks(matrix: Tensor, heads: int) -> Tensor:
    """Diagonal blocks, one per head: [heads * d, heads * d] -> [heads, d, d]."""
    width = matrix.shape[0] // heads
    return matrix.reshape(heads, width, heads, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def triangle(covariance: Tensor, damping: float) -> Tensor:
    """Lower Cholesky factor of `damped`; the damping grows tenfold until there is one.

    A covariance of few images has no full rank, and rounding can leave it slightly indefinite.
    """
    while True:
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(damped(covariance, damping))
        if not failed:
            return factor
        damping *= 10


def blended(metric: Tensor, share: float) -> Tensor:
    """(1 - share) x metric + share x the isotropic one of the same trace; the identity if it is zero. Shape [m, m]."""
    identity = torch.eye(metric.shape[0], dtype=metric.dtype, device=metric.device)
    scale = metric.diagonal().mean()
    return (1 - share) * metric + share * scale * identity if scale > 0 else identity


def tail_sums(energy: Tensor) -> Tensor:
    """Sum of what is left out after keeping the first r entries, r = 0..n. Shape [n] -> [n + 1]; the last is 0."""
    tails = energy.flip(0).cumsum(0).flip(0)
    return torch.cat([tails, tails.new_zeros(1)])
