"""The kinds of sites: how each one's factors are computed, and how a size is sliced out of them into a built model."""

from collections.abc import Callable

import torch
from timm.layers import GluMlp
from torch import Tensor, nn

from spaces.contraction import query_key, value_output
from spaces.low_rank import factorise
from spaces.modules import ContractedAttention, LowRankLinear
from spaces.pruning import elimination_order, prefix_factors, prefix_weight
from spaces.sites import Kind, Site
from spaces.statistics import Moments

Tensors = dict[str, Tensor]


def input_of(site: Site) -> str:
    """Name of the linear whose inputs' moments the site needs."""
    linear = {"query_key": "qkv", "value_output": "proj", "ffn_hidden": "fc2"}.get(site.kind)
    return f"{site.branch}.{linear}" if linear else site.name


def _linear(model: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear.weight.detach(), None if linear.bias is None else linear.bias.detach()


def _spread(moments: Moments, bias: Tensor | None) -> Tensor:
    """Covariance where a bias can carry the mean of what is lost, second moment where there is no bias."""
    return moments.covariance if bias is not None else moments.second()


def _compute_query_key(dense: nn.Module, site: Site, moments: Moments, device: torch.device) -> Tensors:
    weight, bias = _linear(dense, f"{site.branch}.qkv")
    assert moments.within is not None
    heads = weight.shape[0] // (3 * site.dense)
    query, key, _ = weight.to(device).double().reshape(3, heads, site.dense, -1)
    mean = query @ moments.mean.to(device)
    if bias is not None:
        mean = mean + bias.to(device).double().reshape(3, heads, site.dense)[0]
    second = query @ moments.covariance.to(device) @ query.mT + mean.unsqueeze(-1) * mean.unsqueeze(-2)
    factors = query_key(second, key @ moments.within.to(device) @ key.mT)
    return {"query": factors.query, "key": factors.key, "error": factors.error}


def _compute_value_output(dense: nn.Module, site: Site, moments: Moments, device: torch.device) -> Tensors:
    weight, bias = _linear(dense, f"{site.branch}.proj")
    heads = weight.shape[1] // site.dense
    factors = value_output(weight.to(device).double(), _spread(moments, bias).to(device), heads)
    output = factors.output
    return {
        "value": factors.value,
        "projected": output.projected,
        "triangle": output.triangle,
        "error": output.error,
        "mean": moments.mean,
    }


def _compute_neurons(dense: nn.Module, site: Site, moments: Moments, device: torch.device) -> Tensors:
    weight, bias = _linear(dense, f"{site.branch}.fc2")
    weight, covariance = weight.to(device).double(), _spread(moments, bias).to(device)
    order = elimination_order(weight, covariance)
    factors = prefix_factors(weight[:, order], covariance[order][:, order])
    return {
        "order": order,
        "projected": factors.projected,
        "triangle": factors.triangle,
        "error": factors.error,
        "mean": moments.mean,
    }


def _compute_rank(dense: nn.Module, site: Site, moments: Moments, device: torch.device) -> Tensors:
    weight, bias = _linear(dense, site.name)
    factors = factorise(weight.to(device).double(), _spread(moments, bias).to(device))
    return {"up": factors.up, "down": factors.down, "error": factors.error, "mean": moments.mean}


def _parts(dense: nn.Module, branch: str) -> tuple[int, list[Tensor], list[Tensor | None]]:
    """Heads, and the dense query, key and value: weights [heads, d, dim] and biases [heads, d]."""
    weight, bias = _linear(dense, f"{branch}.qkv")
    heads: int = dense.get_submodule(branch).num_heads  # type: ignore[assignment]
    weights = list(weight.reshape(3, heads, -1, weight.shape[1]))
    biases: list[Tensor | None] = [None] * 3 if bias is None else list(bias.reshape(3, heads, -1))
    return heads, weights, biases


def _fill_part(attention: ContractedAttention, part: int, weight: Tensor, bias: Tensor | None) -> None:
    """Write query (0), key (1) or value (2), given per head as [heads, d, dim], into the fused qkv linear."""
    start = part * attention.num_heads * attention.query_key_dim
    rows = slice(start, start + weight.shape[0] * weight.shape[1])
    attention.qkv.weight[rows] = weight.flatten(0, 1)
    if bias is not None:
        attention.qkv.bias[rows] = bias.flatten()


def inherit(dense: nn.Module, model: nn.Module) -> None:
    """Copy into contracted attention what keeps its dense width; the sites that shrink are filled after it."""
    for path, attention in model.named_modules():
        if isinstance(attention, ContractedAttention):
            _, weights, biases = _parts(dense, path)
            widths = (attention.query_key_dim, attention.query_key_dim, attention.value_dim)
            for part, width in enumerate(widths):
                if width == weights[part].shape[1]:
                    _fill_part(attention, part, weights[part], biases[part])
            if attention.value_dim == weights[2].shape[1]:
                _fill_linear(attention.proj, *_linear(dense, f"{path}.proj"))


def _fill_query_key(dense: nn.Module, model: nn.Module, site: Site, size: int, factors: Tensors) -> None:
    attention = model.get_submodule(site.branch)
    assert isinstance(attention, ContractedAttention)
    _, weights, biases = _parts(dense, site.branch)
    for part, name in ((0, "query"), (1, "key")):
        basis, bias = factors[name][:, :size], biases[part]
        _fill_part(attention, part, basis @ weights[part], None if bias is None else _apply(basis, bias))


def _fill_value_output(dense: nn.Module, model: nn.Module, site: Site, size: int, factors: Tensors) -> None:
    attention = model.get_submodule(site.branch)
    assert isinstance(attention, ContractedAttention)
    heads, (_, _, value), (_, _, value_bias) = _parts(dense, site.branch)
    basis = factors["value"][:, :size]
    _fill_part(attention, 2, basis @ value, None if value_bias is None else _apply(basis, value_bias))
    interleaved = prefix_weight(factors["projected"], factors["triangle"], size * heads)
    corrected = interleaved.reshape(-1, size, heads).transpose(1, 2).flatten(1)
    weight, bias = _linear(dense, f"{site.branch}.proj")
    if bias is not None:
        mean = _apply(basis, factors["mean"].reshape(heads, -1)).flatten()
        bias = bias + weight @ factors["mean"] - corrected @ mean
    _fill_linear(attention.proj, corrected, bias)


def _apply(basis: Tensor, vectors: Tensor) -> Tensor:
    """Per head: [heads, r, d] times [heads, d] -> [heads, r]."""
    return (basis @ vectors.unsqueeze(-1)).squeeze(-1)


def _fill_neurons(dense: nn.Module, model: nn.Module, site: Site, size: int, factors: Tensors) -> None:
    ffn = model.get_submodule(site.branch)
    kept = factors["order"][:size].long()
    for name in ("fc1", "fc1_g", "fc1_x"):
        if hasattr(ffn, name):
            weight, bias = _linear(dense, f"{site.branch}.{name}")
            rows = torch.cat([kept, kept + site.dense]) if isinstance(ffn, GluMlp) else kept
            _fill_linear(ffn.get_submodule(name), weight[rows], None if bias is None else bias[rows])
    weight, bias = _linear(dense, f"{site.branch}.fc2")
    corrected = prefix_weight(factors["projected"], factors["triangle"], size)
    if bias is not None:
        bias = bias + weight @ factors["mean"] - corrected @ factors["mean"][kept]
    _fill_linear(ffn.get_submodule("fc2"), corrected, bias)


def _fill_rank(dense: nn.Module, model: nn.Module, site: Site, size: int, factors: Tensors) -> None:
    linear = model.get_submodule(site.name)
    assert isinstance(linear, LowRankLinear)
    weight, bias = _linear(dense, site.name)
    up, down = factors["up"][:, :size], factors["down"][:size]
    if bias is not None:
        bias = bias + weight @ factors["mean"] - up @ (down @ factors["mean"])
    _fill_linear(linear.down, down, None)
    _fill_linear(linear.up, up, bias)


def _fill_linear(linear: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    assert isinstance(linear, nn.Linear)
    linear.weight.copy_(weight)
    if bias is not None:
        linear.bias.copy_(bias)


COMPUTE: dict[Kind, Callable[[nn.Module, Site, Moments, torch.device], Tensors]] = {
    "query_key": _compute_query_key,
    "value_output": _compute_value_output,
    "ffn_hidden": _compute_neurons,
    "rank": _compute_rank,
}
FILL: dict[Kind, Callable[[nn.Module, nn.Module, Site, int, Tensors], None]] = {
    "query_key": _fill_query_key,
    "value_output": _fill_value_output,
    "ffn_hidden": _fill_neurons,
    "rank": _fill_rank,
}
