"""Fewer FFN neurons, in the order of an elimination, with the second linear solved anew by least squares.

Source of the elimination order: Optimal Brain Surgeon (Hassibi & Stork 1993), applied to whole neurons.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from timm.layers import GluMlp, SwiGLU
from torch import Tensor, nn

from spaces.branches import Branch, Trait
from spaces.modules import empty_linear, selected_linear
from spaces.operators.base import Compute, Count, FoundSites, OperatorSpec, SiteKind, Sizes, Tensors, Tokens, Variant, widths
from spaces.operators.least_squares import prefix_factors, prefix_weight
from spaces.operators.linalg import DAMPING, triangle
from spaces.operators.linears import fill_linear, linear_of, rows_of, select_inputs, shifted
from spaces.operators.metric import root_of, seen_through, spread_of
from spaces.operators.selection import by_magnitude, uncorrected
from spaces.sites import Site, Skipped
from spaces.statistics import Moments

_OBSTACLES: dict[Trait, str] = {"hidden norm": "a normalisation over the hidden width depends on every neuron"}
_BLOCK = 32  # eliminations at a time


def neuron_sites(branch: Branch, multiple: int) -> FoundSites:
    """The hidden width."""
    name = f"{branch.path}.hidden"
    if obstacle := branch.obstacle(_OBSTACLES):
        return [], [Skipped(name=name, reason=obstacle)]
    fc2 = branch.module.fc2
    if not isinstance(fc2, nn.Linear):
        return [], [Skipped(name=name, reason=f"{type(fc2).__name__} in place of a linear layer")]
    return [Site(name=name, branch=branch.path, kind="ffn_hidden", choices=widths(fc2.in_features, multiple))], []


def _entering(ffn: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Names and layers that lead into the hidden neurons: one, or two where a gate has its own."""
    for name in ("fc1", "fc1_g", "fc1_x"):
        linear = getattr(ffn, name, None)
        if isinstance(linear, nn.Linear):
            yield name, linear


def resize_ffn(model: nn.Module, path: str, sizes: Sizes, moved: Sizes) -> None:
    """Fewer neurons, or fewer inputs."""
    ffn = model.get_submodule(path)
    fc2 = ffn.get_submodule("fc2")
    assert isinstance(fc2, nn.Linear)
    width = sizes.get("hidden", fc2.in_features)
    rows = 2 * width if isinstance(ffn, GluMlp) else width
    for name, linear in _entering(ffn):
        inputs = sizes.get("inputs", linear.in_features)
        setattr(ffn, name, selected_linear(linear.in_features, inputs, rows, linear.bias is not None))
    ffn.fc2 = empty_linear(width, fc2.out_features, bias=fc2.bias is not None)


def _order_neurons(order_of: Callable[[Tensor, Tensor], Tensor]) -> Compute:
    """Factors of an order of FFN neurons, with the second linear corrected."""

    def compute(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensors:
        weight, bias = linear_of(dense, f"{site.branch}.fc2")
        weight, covariance = weight.to(device).double(), spread_of(moments, bias).to(device)
        root = root_of(moments, device)
        order = order_of(seen_through(root, weight), covariance)
        factors = prefix_factors(weight[:, order], covariance[order][:, order], root)
        assert moments is not None
        return {
            "order": order,
            "projected": factors.projected,
            "triangle": factors.triangle,
            "error": factors.error,
            "mean": moments.mean,
        }

    return compute


def variance_order(weight: Tensor, covariance: Tensor) -> Tensor:
    """Inputs by the variance that each alone brings to the output, ||w_i||^2 C_ii, largest first. Shape [n]."""
    return (weight.square().sum(0) * covariance.diagonal()).argsort(descending=True, stable=True)


def elimination_order(weight: Tensor, covariance: Tensor) -> Tensor:
    """Inputs ordered by greedy optimal-brain-surgeon elimination, most important first. Shape [n].

    Repeatedly removes the input whose removal, once all remaining ones compensate, costs least: ||w_i||^2 / H_ii with
    w_i the corrected column and H the inverse covariance of the remaining inputs. The rank-one updates of H and W are
    applied in blocks of `_BLOCK` eliminations, which leaves the result unchanged and is some fifty times faster.

    Args:
        weight: [m, n]; times the root of the outputs' metric, if they have one.
        covariance: [n, n].
    """
    n = weight.shape[1]
    alive = torch.arange(n, device=weight.device)
    inverse = torch.cholesky_inverse(triangle(covariance, DAMPING))
    weight = weight.clone()
    removed: list[Tensor] = []
    while alive.numel():
        taken = min(_BLOCK, alive.numel())
        gone, inverse, weight = _eliminate(weight, inverse, taken)
        removed.extend(alive[gone].unbind())
        keep = torch.ones(alive.numel(), dtype=torch.bool, device=alive.device)
        keep[gone] = False
        alive, inverse, weight = alive[keep], inverse[keep][:, keep], weight[:, keep]
    return torch.stack(removed).flip(0)


def _eliminate(weight: Tensor, inverse: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Remove the `count` cheapest inputs one after another; returns their indices and the updated inverse and weight."""
    n = weight.shape[1]
    diagonal = inverse.diagonal().clone()
    energy = weight.square().sum(0)
    steps = weight.new_zeros(count, n)  # row j: column of H eliminated in step j, over its pivot
    pivots = weight.new_zeros(count)
    columns = weight.new_zeros(count, weight.shape[0])  # row j: corrected weight column at its elimination
    gone = torch.zeros(count, dtype=torch.long, device=weight.device)
    for j in range(count):
        index = int(torch.argmin(torch.where(diagonal > 0, energy / diagonal, torch.inf)))
        past = steps[:j, index]
        column = inverse[:, index] - (pivots[:j] * past) @ steps[:j]
        pivot = column[index]
        step = column / pivot
        w = weight[:, index] - columns[:j].T @ past
        overlap = weight.T @ w - steps[:j].T @ (columns[:j] @ w)
        energy = energy - 2 * step * overlap + step.square() * (w @ w)
        diagonal = diagonal - pivot * step.square()
        diagonal[index] = 0.0
        gone[j], steps[j], pivots[j], columns[j] = index, step, pivot, w
        diagonal[gone[: j + 1]] = 0.0
    return gone, inverse - steps.T @ (pivots.unsqueeze(1) * steps), weight - columns.T @ steps


def neuron_magnitude(dense: nn.Module, site: Site) -> Tensor:
    """Scores by weight norms: what comes in times what goes out. [neurons]"""
    weight, _ = linear_of(dense, f"{site.branch}.fc2")
    norms = [rows.square().sum(-1) for rows in _incoming(dense.get_submodule(site.branch))]
    return torch.stack(norms).sum(0) * weight.square().sum(0)


def _incoming(ffn: nn.Module) -> list[Tensor]:
    """Weights into the hidden neurons of an FFN, [neurons, dim] each; two where the FFN is gated."""
    weights = [linear.weight.detach() for _, linear in _entering(ffn)]
    return list(weights[0].chunk(2)) if isinstance(ffn, GluMlp) else weights


def _select_neurons(dense: nn.Module, site: Site, scores: Tensor) -> Tensors:
    weight, _ = linear_of(dense, f"{site.branch}.fc2")
    order = scores.argsort(descending=True, stable=True)
    return uncorrected(weight.cpu()[:, order], scores[order]) | {"order": order}


def fill_neurons(dense: nn.Module, model: nn.Module, branch: str, sizes: Sizes, factors: Mapping[str, Tensors]) -> None:
    """The kept neurons in their order, and the second linear solved for them."""
    ffn, second = model.get_submodule(branch), linear_of(dense, f"{branch}.fc2")
    count = second[0].shape[1]
    kept = factors["hidden"]["order"][: sizes["hidden"]].long() if "hidden" in sizes else torch.arange(count)
    rows = torch.cat([kept, kept + count]) if isinstance(ffn, GluMlp) else kept
    for name, first in _entering(ffn):
        weight, bias = linear_of(dense, f"{branch}.{name}")
        fill_linear(first, weight[rows][:, select_inputs(first, factors)], rows_of(bias, rows))
    fill_linear(ffn.get_submodule("fc2"), *(_corrected(*second, kept, factors["hidden"]) if "hidden" in sizes else second))


def _corrected(weight: Tensor, bias: Tensor | None, kept: Tensor, factors: Tensors) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the second linear, for the kept neurons."""
    corrected = prefix_weight(factors["projected"], factors.get("triangle"), len(kept))
    return corrected, shifted(bias, weight, factors["mean"], corrected, factors["mean"][kept])


def ffn_cost(ffn: nn.Module, sites: Sequence[Site], tokens: Tokens) -> Callable[[Sizes], Count]:
    """MACs and parameters of an FFN as a function of the sizes of its sites."""
    return partial(_count, ffn=_Shape.of(ffn), tokens=tokens.left)


@dataclass(frozen=True)
class _Shape:
    inputs: int
    hidden: int
    outputs: int
    gates: int
    bias: bool

    @classmethod
    def of(cls, ffn: nn.Module) -> "_Shape":
        first = ffn.get_submodule("fc1_x" if isinstance(ffn, SwiGLU) else "fc1")
        second = ffn.get_submodule("fc2")
        assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
        gates = 2 if isinstance(ffn, SwiGLU | GluMlp) else 1
        return cls(first.in_features, second.in_features, second.out_features, gates, first.bias is not None)


def _count(sizes: Sizes, ffn: _Shape, tokens: int) -> Count:
    inputs, hidden = sizes.get("inputs", ffn.inputs), sizes.get("hidden", ffn.hidden)
    weights = hidden * (ffn.gates * inputs + ffn.outputs)
    return tokens * weights, weights + hidden * ffn.gates * ffn.bias


NEURONS = OperatorSpec(
    name="neurons",
    sites=neuron_sites,
    kinds={
        "ffn_hidden": SiteKind(
            counts="neurons",
            readers=("fc2",),
            variants={
                "elimination": Variant(compute=_order_neurons(elimination_order)),
                "variance": Variant(compute=_order_neurons(variance_order)),
                "magnitude": by_magnitude(neuron_magnitude, _select_neurons),
            },
            select=_select_neurons,
        ),
    },
    resize=resize_ffn,
    fill=fill_neurons,
    cost=ffn_cost,
)
