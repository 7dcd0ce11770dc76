"""In which units the errors of a layer count: the metric of its outputs and the spread of its inputs, from their moments."""

import torch
from torch import Tensor

from spaces.operators.linalg import blended, roots
from spaces.statistics import Moments

# Share of the isotropic metric in that of a layer's outputs: directions that no calibration image uses keep a cost.
METRIC_DAMPING = 0.1


def metric_of(moments: Moments | None, device: torch.device) -> Tensor | None:
    """What an error of the layer's outputs costs, damped; None where all outputs cost the same. [m, m]"""
    assert moments is not None
    return None if moments.metric is None else blended(moments.metric.to(device), METRIC_DAMPING)


def root_of(moments: Moments | None, device: torch.device) -> Tensor | None:
    """Symmetric root of the metric. [m, m]"""
    metric = metric_of(moments, device)
    return None if metric is None else roots(metric)[0]


def spread_of(moments: Moments | None, bias: Tensor | None) -> Tensor:
    """Covariance where a bias can carry the mean of what is lost, second moment where there is no bias. [n, n]"""
    assert moments is not None
    return moments.covariance if bias is not None else moments.second()


def seen_through(root: Tensor | None, weight: Tensor) -> Tensor:
    """A weight [m, n] with its outputs in the metric, in which errors count alike."""
    return weight if root is None else root @ weight
