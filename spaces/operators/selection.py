"""Plain slicing by given scores, without a correction: what papers do, and what recipes do with weights that they trained.

The tensors are those that the corrected operators of spaces/operators.py give, so that one function fills models from both.
"""

from collections.abc import Callable

import torch
from timm.layers import GluMlp
from torch import Tensor, nn

from spaces.operators.low_rank import tail_sums
from spaces.sites import Kind, Site

Tensors = dict[str, Tensor]


def linear_of(model: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a linear layer."""
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear.weight.detach(), None if linear.bias is None else linear.bias.detach()


def head_parts(dense: nn.Module, branch: str) -> tuple[int, list[Tensor], list[Tensor | None]]:
    """Heads, and the dense query, key and value: weights [heads, d, dim] and biases [heads, d]."""
    weight, bias = linear_of(dense, f"{branch}.qkv")
    count: int = dense.get_submodule(branch).num_heads  # type: ignore[assignment]
    weights = list(weight.reshape(3, count, -1, weight.shape[1]))
    biases: list[Tensor | None] = [None] * 3 if bias is None else list(bias.reshape(3, count, -1))
    return count, weights, biases


def incoming(dense: nn.Module, branch: str) -> list[Tensor]:
    """Weights into the hidden neurons of an FFN, [neurons, dim] each; two where the FFN is gated."""
    ffn = dense.get_submodule(branch)
    weights = [linear_of(dense, f"{branch}.{name}")[0] for name in ("fc1", "fc1_g", "fc1_x") if hasattr(ffn, name)]
    return list(weights[0].chunk(2)) if isinstance(ffn, GluMlp) else weights


def magnitude(dense: nn.Module, site: Site) -> Tensor:
    """Scores by weight norms: what comes in times what goes out. [heads, d] for head widths, [neurons] for the FFN."""
    if site.kind == "ffn_hidden":
        weight, _ = linear_of(dense, f"{site.branch}.fc2")
        return torch.stack([rows.square().sum(-1) for rows in incoming(dense, site.branch)]).sum(0) * weight.square().sum(0)
    count, (query, key, value), _ = head_parts(dense, site.branch)
    if site.kind == "query_key":
        return query.square().sum(-1) * key.square().sum(-1)
    weight, _ = linear_of(dense, f"{site.branch}.proj")
    return value.square().sum(-1) * weight.square().sum(0).reshape(count, -1)


def select(dense: nn.Module, site: Site, scores: Tensor) -> Tensors:
    """Factors of a site that keep what has the largest scores.

    The errors among them are sums of the scores left out, in their unit.

    Args:
        dense: the model to slice.
        site: of kind query_key, value_output (scores [heads, d]), heads [heads], ffn_hidden or inputs [n].
        scores: non-negative importance.
    """
    return _SELECT[site.kind](dense, site, scores.detach().cpu())


def _select_query_key(dense: nn.Module, site: Site, scores: Tensor) -> Tensors:
    basis, kept = _permutations(scores)
    return {"query": basis, "key": basis.clone(), "error": tail_sums(kept.sum(0))}


def _select_value_output(dense: nn.Module, site: Site, scores: Tensor) -> Tensors:
    weight, _ = linear_of(dense, f"{site.branch}.proj")
    basis, kept = _permutations(scores)
    output = weight.cpu().reshape(weight.shape[0], scores.shape[0], -1).permute(1, 2, 0)
    interleaved = (basis @ output).permute(2, 1, 0).flatten(1)
    return _uncorrected(interleaved, kept.T.flatten()) | {"value": basis}


def _select_neurons(dense: nn.Module, site: Site, scores: Tensor) -> Tensors:
    weight, _ = linear_of(dense, f"{site.branch}.fc2")
    order = scores.argsort(descending=True, stable=True)
    return _uncorrected(weight.cpu()[:, order], scores[order]) | {"order": order}


def _select_in_order(dense: nn.Module, site: Site, scores: Tensor) -> Tensors:
    order = scores.argsort(descending=True, stable=True)
    return {"order": order, "error": tail_sums(scores[order])}


def _permutations(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Per head the permutation that sorts its channels, and the sorted scores: [heads, d] -> [heads, d, d], [heads, d]."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return torch.eye(scores.shape[-1])[order], scores.gather(-1, order)


def _uncorrected(weight: Tensor, scores: Tensor) -> Tensors:
    """Factors whose prefixes are the plain columns of `weight`, and which leave the bias alone."""
    return {"projected": weight, "error": tail_sums(scores), "mean": torch.zeros(weight.shape[1])}


_SELECT: dict[Kind, Callable[[nn.Module, Site, Tensor], Tensors]] = {
    "query_key": _select_query_key,
    "value_output": _select_value_output,
    "heads": _select_in_order,
    "ffn_hidden": _select_neurons,
    "inputs": _select_in_order,
}
