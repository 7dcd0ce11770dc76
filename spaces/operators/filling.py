"""How sizes are sliced out of factors into a model that already has the structure of an allocation."""

from collections.abc import Callable, Mapping

import torch
from timm.layers import GluMlp
from torch import Tensor, nn

from spaces.modules import ContractedAttention, LowRankLinear, SelectedLinear
from spaces.operators.neurons import prefix_weight, subset_weight
from spaces.operators.selection import Tensors, head_parts, linear_of

Sizes = Mapping[str, int]
Factors = Mapping[str, Tensors]


def _fill_attention(dense: nn.Module, model: nn.Module, branch: str, sizes: Sizes, factors: Factors) -> None:
    """Queries and keys, values and output projection of narrower or fewer heads."""
    attention = model.get_submodule(branch)
    assert isinstance(attention, ContractedAttention)
    count, weights, biases = head_parts(dense, branch)
    kept = factors["heads"]["order"][: attention.num_heads].long().sort().values if "heads" in sizes else torch.arange(count)
    width = weights[0].shape[1]
    read = _fill_inputs(attention.qkv, factors)
    bases: list[Tensor | None] = [None, None, None]
    if attention.query_key_dim < width:
        bases[:2] = (factors["qk"][name][kept, : attention.query_key_dim] for name in ("query", "key"))
    corrected = attention.value_dim < width or len(kept) < count
    if corrected:
        bases[2] = factors["vo"]["value"][kept, : attention.value_dim]
    for part, basis in enumerate(bases):
        _fill_part(attention, part, weights[part][kept][..., read], _of(biases[part], kept), basis)
    if corrected:
        _fill_projection(dense, attention, branch, kept, factors["vo"])
    else:
        fill_linear(attention.proj, *linear_of(dense, f"{branch}.proj"))


def _fill_inputs(first: nn.Module, factors: Factors) -> Tensor | slice:
    """Tell the first linear of a branch which inputs it reads; returns the columns of the dense weight that stay."""
    if not isinstance(first, SelectedLinear):
        return slice(None)
    kept = factors["inputs"]["order"][: first.in_features].long().sort().values
    first.kept.copy_(kept)
    return kept


def _fill_part(attention: ContractedAttention, part: int, weight: Tensor, bias: Tensor | None, basis: Tensor | None) -> None:
    """Write queries (0), keys (1) or values (2), [heads, d, dim], into the fused linear; through `basis` [heads, r, d]."""
    if basis is not None:
        weight = basis @ weight
        bias = None if bias is None else _apply(basis, bias)
    start = part * attention.num_heads * attention.query_key_dim
    rows = slice(start, start + weight.shape[0] * weight.shape[1])
    attention.qkv.weight[rows] = weight.flatten(0, 1)
    if bias is not None:
        attention.qkv.bias[rows] = bias.flatten()


def _fill_projection(dense: nn.Module, attention: ContractedAttention, branch: str, kept: Tensor, factors: Tensors) -> None:
    """The output projection, solved over the components of the kept heads; factors are component-major."""
    width, count = attention.value_dim, factors["value"].shape[0]
    if len(kept) == count:
        weight = prefix_weight(factors["projected"], factors.get("triangle"), width * count)
    else:
        columns = (torch.arange(width).unsqueeze(1) * count + kept).flatten()
        weight = subset_weight(factors["projected"], factors.get("triangle"), columns)
    corrected = weight.reshape(-1, width, len(kept)).transpose(1, 2).flatten(1)
    mean = _apply(factors["value"][kept, :width], factors["mean"].reshape(count, -1)[kept]).flatten()
    original, bias = linear_of(dense, f"{branch}.proj")
    fill_linear(attention.proj, corrected, _shifted(bias, original, factors["mean"], corrected, mean))


def _shifted(bias: Tensor | None, weight: Tensor, mean: Tensor, new_weight: Tensor, new_mean: Tensor) -> Tensor | None:
    """A bias that takes up the mean of what is lost: b + W mu - W' mu'."""
    return None if bias is None else bias + weight @ mean - new_weight @ new_mean


def _apply(basis: Tensor, vectors: Tensor) -> Tensor:
    """Per head: [heads, r, d] times [heads, d] -> [heads, r]."""
    return (basis @ vectors.unsqueeze(-1)).squeeze(-1)


def _of(tensor: Tensor | None, index: Tensor) -> Tensor | None:
    return None if tensor is None else tensor[index]


def _fill_neurons(dense: nn.Module, model: nn.Module, branch: str, sizes: Sizes, factors: Factors) -> None:
    ffn, found, size = model.get_submodule(branch), factors["hidden"], sizes["hidden"]
    kept = found["order"][:size].long()
    for name in ("fc1", "fc1_g", "fc1_x"):
        if hasattr(ffn, name):
            first, (weight, bias) = ffn.get_submodule(name), linear_of(dense, f"{branch}.{name}")
            rows = torch.cat([kept, kept + len(found["order"])]) if isinstance(ffn, GluMlp) else kept
            fill_linear(first, weight[rows][:, _fill_inputs(first, factors)], _of(bias, rows))
    weight, bias = linear_of(dense, f"{branch}.fc2")
    corrected = prefix_weight(found["projected"], found.get("triangle"), size)
    fill_linear(ffn.get_submodule("fc2"), corrected, _shifted(bias, weight, found["mean"], corrected, found["mean"][kept]))


def _fill_ranks(dense: nn.Module, model: nn.Module, branch: str, sizes: Sizes, factors: Factors) -> None:
    for part, rank in sizes.items():
        linear, found = model.get_submodule(f"{branch}.{part}"), factors[part]
        if isinstance(linear, LowRankLinear):
            weight, bias = linear_of(dense, f"{branch}.{part}")
            up, down = found["up"][:, :rank], found["down"][:rank]
            fill_linear(linear.down, down, None)
            fill_linear(linear.up, up, _shifted(bias, weight, found["mean"], up, down @ found["mean"]))


def fill_linear(linear: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Write weight and bias into a linear layer of their shape."""
    assert isinstance(linear, nn.Linear)
    linear.weight.copy_(weight)
    if bias is not None:
        linear.bias.copy_(bias)


# Operator -> how its branch is filled: dense model, model, branch, sizes and factors by part of the branch.
FILL: dict[str, Callable[[nn.Module, nn.Module, str, Sizes, Factors], None]] = {
    "contract": _fill_attention,
    "heads": _fill_attention,
    "neurons": _fill_neurons,
    "low-rank": _fill_ranks,
    "gated-attention": _fill_attention,
    "gated-ffn": _fill_neurons,
}
