"""What every kind of site needs to be made smaller, computed from weights and moments; several variants of most kinds.

All variants of a kind give the same tensors, so that spaces/filling.py builds models from any of them. The first variant of
a kind is the engine's own; `plain` and `magnitude` have no correction and need no images: they are what papers
compare with.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from timm.layers import GluMlp
from torch import Tensor, nn

from spaces import heads
from spaces.contraction import query_key, value_output
from spaces.low_rank import factorise, tail_sums
from spaces.pruning import elimination_order, prefix_factors, variance_order
from spaces.sites import Kind, Site
from spaces.statistics import Moments

Tensors = dict[str, Tensor]
Variants = Mapping[Kind, str]
Compute = Callable[[nn.Module, Site, Moments | None, torch.device], Tensors]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to compute the factors of a kind of site.

    Attributes:
        compute: (dense model, site, moments of `input_of` it or None, device) -> tensors.
        needs: what of the calibration images it uses: nothing, "moments", or "saliency" too.
    """

    compute: Compute
    needs: frozenset[str] = field(default_factory=lambda: frozenset({"moments"}))


def variant_of(kind: Kind, variants: Variants) -> Variant:
    """The chosen variant of a kind; the first one where none is chosen.

    Raises:
        ValueError: unknown name.
    """
    known = VARIANTS[kind]
    name = variants.get(kind, next(iter(known)))
    if name not in known:
        raise ValueError(f"unknown variant {name!r} of {kind}: choose one of {', '.join(known)}")
    return known[name]


def input_of(site: Site) -> str:
    """Name of the linear whose inputs' moments the site needs."""
    linear = {"query_key": "qkv", "value_output": "proj", "heads": "proj", "ffn_hidden": "fc2"}.get(site.kind)
    return f"{site.branch}.{linear}" if linear else site.name


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


def _spread(moments: Moments | None, bias: Tensor | None) -> Tensor:
    """Covariance where a bias can carry the mean of what is lost, second moment where there is no bias."""
    assert moments is not None
    return moments.covariance if bias is not None else moments.second()


def _contract_query_key(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensors:
    weight, bias = linear_of(dense, f"{site.branch}.qkv")
    assert moments is not None and moments.within is not None
    count = weight.shape[0] // (3 * site.dense)
    query, key, _ = weight.to(device).double().reshape(3, count, site.dense, -1)
    mean = query @ moments.mean.to(device)
    if bias is not None:
        mean = mean + bias.to(device).double().reshape(3, count, site.dense)[0]
    second = query @ moments.covariance.to(device) @ query.mT + mean.unsqueeze(-1) * mean.unsqueeze(-2)
    factors = query_key(second, key @ moments.within.to(device) @ key.mT)
    return {"query": factors.query, "key": factors.key, "error": factors.error}


def _select_query_key(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensors:
    """Channels of each head by the product of the norms of their query and key weights."""
    _, (query, key, _), _ = head_parts(dense, site.branch)
    energy = query.square().sum(-1) * key.square().sum(-1)
    basis, kept = _permutations(energy)
    return {"query": basis, "key": basis, "error": tail_sums(kept.sum(0))}


def _contract_value_output(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensors:
    weight, bias = linear_of(dense, f"{site.branch}.proj")
    count = weight.shape[1] // site.dense
    factors = value_output(weight.to(device).double(), _spread(moments, bias).to(device), count)
    assert moments is not None
    output = factors.output
    return {
        "value": factors.value,
        "projected": output.projected,
        "triangle": output.triangle,
        "error": output.error,
        "mean": moments.mean,
    }


def _select_value_output(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensors:
    """Channels of each head by the product of the norms of their value and output weights; nothing makes up for them."""
    weight, _ = linear_of(dense, f"{site.branch}.proj")
    count, (_, _, value), _ = head_parts(dense, site.branch)
    output = weight.reshape(weight.shape[0], count, -1).permute(1, 2, 0)
    basis, energy = _permutations(value.square().sum(-1) * output.square().sum(-1))
    interleaved = (basis @ output).permute(2, 1, 0).flatten(1)
    return _uncorrected(interleaved, energy.T.flatten()) | {"value": basis}


def _permutations(energy: Tensor) -> tuple[Tensor, Tensor]:
    """Per head the permutation that sorts its channels, and the sorted energies: [heads, d] -> [heads, d, d], [heads, d]."""
    order = energy.argsort(dim=-1, descending=True, stable=True)
    return torch.eye(energy.shape[-1])[order], energy.gather(-1, order)


def _uncorrected(weight: Tensor, energy: Tensor) -> Tensors:
    """Factors whose prefixes are the plain columns of `weight`; errors are in units of weights only."""
    inputs = weight.shape[1]
    triangle, mean = torch.eye(inputs), torch.zeros(inputs)
    return {"projected": weight, "triangle": triangle, "error": tail_sums(energy), "mean": mean}


def _order_heads(score: Callable[[nn.Module, Site, Moments | None, torch.device], Tensor]) -> Compute:
    """Factors of a ranking of heads: their order, and what is lost once the output projection makes up for the others."""

    def compute(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensors:
        order = score(dense, site, moments, device).argsort(descending=True, stable=True).cpu()
        if moments is None:
            return {"order": order, "error": torch.arange(site.dense, -1, -1)}  # heads lost: no images, no better measure
        weight, bias = linear_of(dense, f"{site.branch}.proj")
        columns = torch.arange(weight.shape[1]).reshape(site.dense, -1)[order].flatten()
        factors = prefix_factors(weight.to(device).double()[:, columns], _spread(moments, bias).to(device)[columns][:, columns])
        return {"order": order, "error": factors.error[:: weight.shape[1] // site.dense]}

    return compute


def _head_energy(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensor:
    weight, bias = linear_of(dense, f"{site.branch}.proj")
    return heads.energy_scores(weight.to(device).double(), _spread(moments, bias).to(device), site.dense)


def _head_elimination(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensor:
    weight, bias = linear_of(dense, f"{site.branch}.proj")
    return heads.elimination_scores(weight.to(device).double(), _spread(moments, bias).to(device), site.dense)


def _head_magnitude(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensor:
    qkv, _ = linear_of(dense, f"{site.branch}.qkv")
    weight, _ = linear_of(dense, f"{site.branch}.proj")
    return heads.magnitude_scores(qkv, weight, site.dense)


def _head_taylor(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensor:
    assert moments is not None and moments.saliency is not None
    return heads.taylor_scores(moments.saliency, site.dense)


def _head_graph(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensor:
    assert moments is not None
    return heads.graph_scores(moments.second(), site.dense)


def _order_neurons(order_of: Callable[[Tensor, Tensor], Tensor]) -> Compute:
    """Factors of an order of FFN neurons, with the second linear corrected."""

    def compute(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensors:
        weight, bias = linear_of(dense, f"{site.branch}.fc2")
        weight, covariance = weight.to(device).double(), _spread(moments, bias).to(device)
        order = order_of(weight, covariance)
        factors = prefix_factors(weight[:, order], covariance[order][:, order])
        assert moments is not None
        return {
            "order": order,
            "projected": factors.projected,
            "triangle": factors.triangle,
            "error": factors.error,
            "mean": moments.mean,
        }

    return compute


def _select_neurons(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensors:
    """Neurons by the product of the norms of their input and output weights; nothing makes up for them."""
    weight, _ = linear_of(dense, f"{site.branch}.fc2")
    first = sum(rows.square().sum(-1) for rows in incoming(dense, site.branch))
    energy = first * weight.square().sum(0)
    order = energy.argsort(descending=True, stable=True)
    return _uncorrected(weight[:, order], energy[order]) | {"order": order}


def incoming(dense: nn.Module, branch: str) -> list[Tensor]:
    """Weights into the hidden neurons of an FFN, [neurons, dim] each; two where the FFN is gated."""
    ffn = dense.get_submodule(branch)
    weights = [linear_of(dense, f"{branch}.{name}")[0] for name in ("fc1", "fc1_g", "fc1_x") if hasattr(ffn, name)]
    return list(weights[0].chunk(2)) if isinstance(ffn, GluMlp) else weights


def _factorise_whitened(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensors:
    weight, bias = linear_of(dense, site.name)
    factors = factorise(weight.to(device).double(), _spread(moments, bias).to(device))
    assert moments is not None
    return {"up": factors.up, "down": factors.down, "error": factors.error, "mean": moments.mean}


def _factorise_plain(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensors:
    """Truncated SVD of the weight alone."""
    weight, _ = linear_of(dense, site.name)
    factors = factorise(weight.to(device).double())
    return {"up": factors.up, "down": factors.down, "error": factors.error, "mean": torch.zeros(weight.shape[1])}


_NOTHING: frozenset[str] = frozenset()
VARIANTS: dict[Kind, dict[str, Variant]] = {
    "query_key": {
        "contraction": Variant(compute=_contract_query_key),
        "magnitude": Variant(compute=_select_query_key, needs=_NOTHING),
    },
    "value_output": {
        "contraction": Variant(compute=_contract_value_output),
        "magnitude": Variant(compute=_select_value_output, needs=_NOTHING),
    },
    "heads": {
        "energy": Variant(compute=_order_heads(_head_energy)),
        "elimination": Variant(compute=_order_heads(_head_elimination)),
        "magnitude": Variant(compute=_order_heads(_head_magnitude), needs=_NOTHING),
        "taylor": Variant(compute=_order_heads(_head_taylor), needs=frozenset({"moments", "saliency"})),
        "graph": Variant(compute=_order_heads(_head_graph)),
    },
    "ffn_hidden": {
        "elimination": Variant(compute=_order_neurons(elimination_order)),
        "variance": Variant(compute=_order_neurons(variance_order)),
        "magnitude": Variant(compute=_select_neurons, needs=_NOTHING),
    },
    "rank": {
        "whitened": Variant(compute=_factorise_whitened),
        "plain": Variant(compute=_factorise_plain, needs=_NOTHING),
    },
}
