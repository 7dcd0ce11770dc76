"""Fewer inputs of a branch, beside fewer channels of the head outputs or fewer neurons: what VTP's gates remove."""

from torch import nn

from spaces.branches import Branch
from spaces.operators.attention import attention_cost, fill_attention, resize_attention
from spaces.operators.base import FoundSites, OperatorSpec, SiteKind, widths
from spaces.operators.contraction import contraction_sites
from spaces.operators.neurons import ffn_cost, fill_neurons, neuron_sites, resize_ffn
from spaces.operators.selection import in_order
from spaces.sites import Site, Skipped


def _gated_attention_sites(branch: Branch, multiple: int) -> FoundSites:
    """The widths behind VTP's gates in attention: its inputs, and channels of the head outputs."""
    inputs, refused = _input_sites(branch, "qkv", multiple)
    found, reasons = contraction_sites(branch, multiple)
    return [*inputs, *(site for site in found if site.kind == "value_output")], [*reasons, *refused]


def _gated_ffn_sites(branch: Branch, multiple: int) -> FoundSites:
    """The widths behind VTP's gates in an FFN: its inputs, and its neurons."""
    inputs, refused = _input_sites(branch, "fc1", multiple)
    neurons, reasons = neuron_sites(branch, multiple)
    return [*inputs, *neurons], [*reasons, *refused]


def _input_sites(branch: Branch, first: str, multiple: int) -> FoundSites:
    name, linear = f"{branch.path}.inputs", getattr(branch.module, first, None)
    if not isinstance(linear, nn.Linear) or "separate biases" in branch.traits:
        reason = f"the first linear layer of {type(branch.module).__name__} is not a single plain one"
        return [], [Skipped(name=name, reason=reason)]
    return [Site(name=name, branch=branch.path, kind="inputs", choices=widths(linear.in_features, multiple))], []


GATED_ATTENTION = OperatorSpec(
    name="gated-attention",
    sites=_gated_attention_sites,
    kinds={"inputs": SiteKind(counts="inputs", readers=("qkv", "fc1"), select=in_order)},
    resize=resize_attention,
    fill=fill_attention,
    cost=attention_cost,
)

GATED_FFN = OperatorSpec(name="gated-ffn", sites=_gated_ffn_sites, resize=resize_ffn, fill=fill_neurons, cost=ffn_cost)
