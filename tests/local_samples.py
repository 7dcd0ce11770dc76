"""Correlated inputs of a layer, for the tests of the closed-form operators on samples."""

import torch
from torch import Tensor


def mixed(mix: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` centred samples whose components are normal numbers mixed by a square matrix."""
    x = torch.randn(count, len(mix), generator=generator, dtype=torch.float64) @ mix
    return x - x.mean(0)


def covariance(x: Tensor) -> Tensor:
    return x.T @ x / len(x)
