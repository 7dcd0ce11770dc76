"""MACs and parameters of an allocation in closed form: microseconds, so that proposals can be fitted to a budget.

`flops` in options means MACs. Biases count as parameters; MACs cover the products of convolutions, linear layers and
attention (what objectives/count.py counts by tracing).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from timm.layers import Attention as TimmAttention
from timm.layers import AttentionPoolLatent, AttentionRope, GluMlp, SwiGLU
from timm.models.eva import EvaAttention
from torch import Tensor, nn

from spaces.allocation import Allocation
from spaces.errors import CountError
from spaces.models import input_size
from spaces.sites import Site, Space

Cost = Literal["macs", "params"]
COSTS: tuple[Cost, ...] = get_args(Cost)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What one unit of size costs at one site: MACs per image and parameters."""

    macs: int
    params: int


@dataclass(frozen=True)
class CostModel:
    """Costs of every allocation of one space of one dense model, for one image of the model's input size.

    Rival operators of a branch never act together, so the cost of an allocation is that of the dense model less what
    each site saves.

    Attributes:
        dense: cost name -> figure of the dense model.
        sites: site name -> (site, cost of one unit of its size, cost at its dense size).
    """

    dense: dict[Cost, int]
    sites: dict[str, tuple[Site, Unit, Unit]]

    def count(self, allocation: Allocation, cost: Cost) -> int:
        """MACs or parameters of the model that `allocation` builds."""
        total = self.dense[cost]
        for name, size in allocation.items():
            site, unit, whole = self.sites[name]
            if size != site.dense:
                total += size * getattr(unit, cost) - getattr(whole, cost)
        return total

    def costs(self, allocation: Allocation) -> dict[Cost, int]:
        """All costs of an allocation."""
        return {cost: self.count(allocation, cost) for cost in COSTS}


def cost_model(dense: nn.Module, space: Space) -> CostModel:
    """Closed form for a dense timm model, from its shapes and one forward pass that tells the number of tokens.

    Raises:
        CountError: a layer of the branches was not called, so its number of tokens is unknown.
    """
    macs, tokens = _probe(dense)
    params = sum(parameter.numel() for parameter in dense.parameters())
    sites: dict[str, tuple[Site, Unit, Unit]] = {}
    for site in space.sites:
        branch = dense.get_submodule(site.branch)
        count = tokens.get(site.branch, 0)
        if count == 0:
            raise CountError(f"{site.branch} was not called in a forward pass: its cost is unknown")
        unit = _UNITS[site.kind](site, branch, count)
        whole = Unit(macs=site.dense * unit.macs, params=site.dense * unit.params)
        if site.linear is not None:
            weights = site.linear[0] * site.linear[1]
            whole = Unit(macs=count * weights, params=weights)
        sites[site.name] = (site, unit, whole)
    return CostModel({"macs": macs, "params": params}, sites)


def _query_key_unit(site: Site, branch: nn.Module, tokens: int) -> Unit:
    qkv, _, heads = _attention_shape(branch)
    bias = qkv.bias is not None
    return Unit(macs=heads * tokens * (2 * qkv.in_features + tokens), params=heads * 2 * (qkv.in_features + bias))


def _value_output_unit(site: Site, branch: nn.Module, tokens: int) -> Unit:
    qkv, proj, heads = _attention_shape(branch)
    bias = qkv.bias is not None
    return Unit(
        macs=heads * tokens * (qkv.in_features + tokens + proj.out_features),
        params=heads * (qkv.in_features + bias + proj.out_features),
    )


def _attention_shape(branch: nn.Module) -> tuple[nn.Linear, nn.Linear, int]:
    qkv, proj = branch.get_submodule("qkv"), branch.get_submodule("proj")
    assert isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear)
    return qkv, proj, branch.num_heads  # type: ignore[return-value]


def _neuron_unit(site: Site, branch: nn.Module, tokens: int) -> Unit:
    first = branch.get_submodule("fc1_x" if isinstance(branch, SwiGLU) else "fc1")
    second = branch.get_submodule("fc2")
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    gates = 2 if isinstance(branch, SwiGLU | GluMlp) else 1
    weights = gates * first.in_features + second.out_features
    return Unit(macs=tokens * weights, params=weights + gates * (first.bias is not None))


def _rank_unit(site: Site, branch: nn.Module, tokens: int) -> Unit:
    assert site.linear is not None
    weights = sum(site.linear)
    return Unit(macs=tokens * weights, params=weights)


_UNITS: dict[str, Callable[[Site, nn.Module, int], Unit]] = {
    "query_key": _query_key_unit,
    "value_output": _value_output_unit,
    "ffn_hidden": _neuron_unit,
    "rank": _rank_unit,
}


def _probe(model: nn.Module) -> tuple[int, dict[str, int]]:
    """MACs of the dense model for one image, and module name -> number of tokens that it sees."""
    macs: list[int] = []
    tokens: dict[str, int] = {}
    handles = [
        module.register_forward_hook(partial(_observe, name, macs, tokens)) for name, module in model.named_modules() if name
    ]
    parameter = next(model.parameters())
    image = torch.zeros(1, *input_size(model), device=parameter.device, dtype=parameter.dtype)
    try:
        with torch.inference_mode():
            model.eval()(image)
    finally:
        for handle in handles:
            handle.remove()
    return sum(macs), tokens


def _observe(
    name: str, macs: list[int], tokens: dict[str, int], module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
) -> None:
    if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim == 3:
        tokens[name] = inputs[0].shape[1]
    if isinstance(module, nn.Linear):
        macs.append(output.numel() * module.in_features)
    elif isinstance(module, nn.Conv2d):
        macs.append(output.numel() * module.weight[0].numel())
    elif isinstance(module, TimmAttention | AttentionRope | EvaAttention):
        macs.append(_products(module, tokens[name], tokens[name]))
        if getattr(module, "q_bias", None) is not None:  # EVA applies this weight without calling the layer
            macs.append(tokens[name] * module.qkv.weight.numel())
    elif isinstance(module, AttentionPoolLatent):
        macs.append(_products(module, module.latent_len, tokens[name]))


def _products(attention: nn.Module, queries: int, keys: int) -> int:
    """MACs of both products of dense attention, of `queries` tokens to `keys` tokens."""
    return 2 * queries * keys * attention.num_heads * attention.head_dim  # type: ignore[operator, return-value]
