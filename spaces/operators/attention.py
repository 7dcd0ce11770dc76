"""What all operators of attention share: the parts of its heads, its structure, how it is filled, and its cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from spaces.modules import ContractedAttention
from spaces.operators.base import Count, Sizes, Tensors, Timing, Tokens
from spaces.operators.least_squares import prefix_weight, subset_weight
from spaces.operators.linears import fill_linear, linear_of, rows_of, select_inputs, shifted
from spaces.sites import Site

ATTENTION_TIMING = Timing(paired=("qk", "vo"))  # where they differ, another kernel computes


def head_parts(dense: nn.Module, branch: str) -> tuple[int, list[Tensor], list[Tensor | None]]:
    """Heads, and the dense query, key and value: weights [heads, d, dim] and biases [heads, d]."""
    weight, bias = linear_of(dense, f"{branch}.qkv")
    count: int = dense.get_submodule(branch).num_heads  # type: ignore[assignment]
    weights = list(weight.reshape(3, count, -1, weight.shape[1]))
    biases: list[Tensor | None] = [None] * 3 if bias is None else list(bias.reshape(3, count, -1))
    return count, weights, biases


def resize_attention(model: nn.Module, path: str, sizes: Sizes, moved: Sizes) -> None:
    """Fewer heads, other widths of heads, or fewer inputs."""
    dense = model.get_submodule(path)
    heads: int = dense.num_heads  # type: ignore[assignment]
    width: int = dense.head_dim  # type: ignore[assignment]
    inputs: int = dense.get_submodule("qkv").in_features  # type: ignore[assignment]
    attention = ContractedAttention(
        dense, sizes.get("heads", heads), sizes.get("qk", width), sizes.get("vo", width), sizes.get("inputs", inputs)
    )
    model.set_submodule(path, attention)


def fill_attention(dense: nn.Module, model: nn.Module, branch: str, sizes: Sizes, factors: Mapping[str, Tensors]) -> None:
    """Queries and keys, values and output projection of narrower or fewer heads."""
    attention = model.get_submodule(branch)
    assert isinstance(attention, ContractedAttention)
    count, weights, biases = head_parts(dense, branch)
    kept = factors["heads"]["order"][: attention.num_heads].long().sort().values if "heads" in sizes else torch.arange(count)
    width = weights[0].shape[1]
    read = select_inputs(attention.qkv, factors)
    bases: list[Tensor | None] = [None, None, None]
    if attention.query_key_dim < width:
        bases[:2] = (factors["qk"][name][kept, : attention.query_key_dim] for name in ("query", "key"))
    corrected = attention.value_dim < width or len(kept) < count
    if corrected:
        bases[2] = factors["vo"]["value"][kept, : attention.value_dim]
    for part, basis in enumerate(bases):
        _fill_part(attention, part, weights[part][kept][..., read], rows_of(biases[part], kept), basis)
    if corrected:
        _fill_projection(dense, attention, branch, kept, factors["vo"])
    else:
        fill_linear(attention.proj, *linear_of(dense, f"{branch}.proj"))


def _fill_part(attention: ContractedAttention, part: int, weight: Tensor, bias: Tensor | None, basis: Tensor | None) -> None:
    """Write queries (0), keys (1) or values (2), [heads, d, dim], into the fused linear; through `basis` [heads, r, d]."""
    assert isinstance(attention.qkv, nn.Linear)
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
    fill_linear(attention.proj, corrected, shifted(bias, original, factors["mean"], corrected, mean))


def _apply(basis: Tensor, vectors: Tensor) -> Tensor:
    """Per head: [heads, r, d] times [heads, d] -> [heads, r]."""
    return (basis @ vectors.unsqueeze(-1)).squeeze(-1)


def attention_cost(attention: nn.Module, sites: Sequence[Site], tokens: Tokens) -> Callable[[Sizes], Count]:
    """MACs and parameters of a branch of attention as a function of the sizes of its sites."""
    return partial(_count, attention=_Shape.of(attention), tokens=tokens)


@dataclass(frozen=True)
class _Shape:
    inputs: int
    heads: int
    width: int
    outputs: int
    bias: bool

    @classmethod
    def of(cls, attention: nn.Module) -> "_Shape":
        qkv, proj = attention.get_submodule("qkv"), attention.get_submodule("proj")
        assert isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear)
        heads: int = attention.num_heads  # type: ignore[assignment]
        width: int = attention.head_dim  # type: ignore[assignment]
        return cls(qkv.in_features, heads, width, proj.out_features, qkv.bias is not None)


def _count(sizes: Sizes, attention: _Shape, tokens: Tokens) -> Count:
    inputs, heads = sizes.get("inputs", attention.inputs), sizes.get("heads", attention.heads)
    query_key, value = heads * sizes.get("qk", attention.width), heads * sizes.get("vo", attention.width)
    asked, seen = tokens.asked, tokens.seen
    queries, others, output = inputs * query_key, inputs * (query_key + value), value * attention.outputs
    macs = asked * (queries + output) + seen * others + asked * seen * (query_key + value)
    return macs, queries + others + output + attention.bias * (2 * query_key + value)
