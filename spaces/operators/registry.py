"""What every kind of site needs to be made smaller, computed from weights and moments; several variants of most kinds.

All variants of a kind give the same tensors, so that spaces/filling.py builds models from any of them. The first variant of
a kind is the engine's own; `plain` and `magnitude` have no correction and need no images: they are what papers compare with.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from spaces.operators import heads
from spaces.operators.contraction import query_key, value_output
from spaces.operators.linalg import blended, roots
from spaces.operators.low_rank import factorise
from spaces.operators.neurons import elimination_order, prefix_factors, variance_order
from spaces.operators.selection import Tensors, linear_of, magnitude, select
from spaces.sites import Kind, Site
from spaces.statistics import Moments

Variants = Mapping[Kind, str]

# Share of the isotropic metric in that of a layer's outputs: directions that no calibration image uses keep a cost.
METRIC_DAMPING = 0.1
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
    """Name of the linear whose inputs' moments the site needs: what reads its channels, qkv for queries and keys."""
    first = "qkv" if site.branch.endswith(".attn") else "fc1"
    readers = {"query_key": "qkv", "value_output": "proj", "heads": "proj", "ffn_hidden": "fc2", "inputs": first}
    return f"{site.branch}.{readers[site.kind]}" if site.kind in readers else site.name


def _metric(moments: Moments | None, device: torch.device) -> Tensor | None:
    """What an error of the layer's outputs costs, damped; None where all outputs cost the same."""
    assert moments is not None
    return None if moments.metric is None else blended(moments.metric.to(device), METRIC_DAMPING)


def _root(moments: Moments | None, device: torch.device) -> Tensor | None:
    """Symmetric root of the metric."""
    metric = _metric(moments, device)
    return None if metric is None else roots(metric)[0]


def _spread(moments: Moments | None, bias: Tensor | None) -> Tensor:
    """Covariance where a bias can carry the mean of what is lost, second moment where there is no bias."""
    assert moments is not None
    return moments.covariance if bias is not None else moments.second()


def _contract_query_key(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensors:
    assert moments is not None and moments.heads is not None
    unit = None if moments.heads.unit is None else moments.heads.unit.to(device)
    factors = query_key(moments.heads.query.to(device), moments.heads.key.to(device), unit)
    return {"query": factors.query, "key": factors.key, "error": factors.error}


def _contract_value_output(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensors:
    weight, bias = linear_of(dense, f"{site.branch}.proj")
    count = weight.shape[1] // site.dense
    spread = _spread(moments, bias).to(device)
    factors = value_output(weight.to(device).double(), spread, count, _metric(moments, device))
    assert moments is not None
    output = factors.output
    return {
        "value": factors.value,
        "projected": output.projected,
        "triangle": output.triangle,
        "error": output.error,
        "mean": moments.mean,
    }


def _seen(weight: Tensor, root: Tensor | None) -> Tensor:
    """A weight [m, n] with its outputs in the metric in which errors count alike."""
    return weight if root is None else root @ weight


def _select_by_magnitude(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensors:
    return select(dense, site, magnitude(dense, site))


def _order_heads(score: Callable[[nn.Module, Site, Moments | None, torch.device], Tensor]) -> Compute:
    """Factors of a ranking of heads: their order, and what is lost once the output projection makes up for the others."""

    def compute(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensors:
        order = score(dense, site, moments, device).argsort(descending=True, stable=True).cpu()
        if moments is None:
            return {"order": order, "error": torch.arange(site.dense, -1, -1)}  # heads lost: no images, no better measure
        weight, bias = linear_of(dense, f"{site.branch}.proj")
        columns = torch.arange(weight.shape[1]).reshape(site.dense, -1)[order].flatten().to(device)
        spread = _spread(moments, bias).to(device)[columns][:, columns]
        factors = prefix_factors(weight.to(device).double()[:, columns], spread, _root(moments, device))
        return {"order": order, "error": factors.error[:: weight.shape[1] // site.dense]}

    return compute


def _head_energy(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensor:
    weight, bias = linear_of(dense, f"{site.branch}.proj")
    weight = _seen(weight.to(device).double(), _root(moments, device))
    return heads.energy_scores(weight, _spread(moments, bias).to(device), site.dense)


def _head_elimination(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensor:
    weight, bias = linear_of(dense, f"{site.branch}.proj")
    weight = _seen(weight.to(device).double(), _root(moments, device))
    return heads.elimination_scores(weight, _spread(moments, bias).to(device), site.dense)


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
        root = _root(moments, device)
        order = order_of(_seen(weight, root), covariance)
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


def _factorise_whitened(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensors:
    weight, bias = linear_of(dense, site.name)
    factors = factorise(weight.to(device).double(), _spread(moments, bias).to(device), _metric(moments, device))
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
        "magnitude": Variant(compute=_select_by_magnitude, needs=_NOTHING),
    },
    "value_output": {
        "contraction": Variant(compute=_contract_value_output),
        "magnitude": Variant(compute=_select_by_magnitude, needs=_NOTHING),
    },
    "heads": {
        "elimination": Variant(compute=_order_heads(_head_elimination)),
        "energy": Variant(compute=_order_heads(_head_energy)),
        "magnitude": Variant(compute=_order_heads(_head_magnitude), needs=_NOTHING),
        "taylor": Variant(compute=_order_heads(_head_taylor), needs=frozenset({"moments", "saliency"})),
        "graph": Variant(compute=_order_heads(_head_graph)),
    },
    "ffn_hidden": {
        "elimination": Variant(compute=_order_neurons(elimination_order)),
        "variance": Variant(compute=_order_neurons(variance_order)),
        "magnitude": Variant(compute=_select_by_magnitude, needs=_NOTHING),
    },
    "rank": {
        "whitened": Variant(compute=_factorise_whitened),
        "plain": Variant(compute=_factorise_plain, needs=_NOTHING),
    },
}
