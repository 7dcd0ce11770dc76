"""Which sites a timm vision transformer has, why some places have none, and the structure that an allocation gives it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from timm.layers import Attention as TimmAttention
from timm.layers import AttentionRope, GluMlp, Mlp, SwiGLU
from timm.models.eva import EvaAttention
from torch import nn

from spaces.allocation import Allocation
from spaces.errors import ModelError
from spaces.modules import ContractedAttention, LowRankLinear, LowRankSparseLinear, empty_linear, selected_linear
from spaces.sites import Operator, Site, Skipped, Space, SpaceName

# Space -> rival operators of an attention and of an FFN branch. The last two only describe what trained recipes make.
OPERATORS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "contract": (("contract",), ("neurons",)),
    "heads": (("heads",), ("neurons",)),
    "hybrid": (("low-rank",), ("neurons",)),
    "low-rank": (("low-rank",), ("low-rank",)),
    "full": (("contract", "low-rank"), ("neurons", "low-rank")),
    "gated": (("gated-attention",), ("gated-ffn",)),
    "low-rank-sparse": (("low-rank-sparse",), ("low-rank-sparse",)),
}

# timm's own classes only: a subclass may compute something else in the same attributes.
ATTENTION = (TimmAttention, AttentionRope, EvaAttention)
_FFN = (Mlp, GluMlp, SwiGLU)


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One residual branch of a block, with its timm module."""

    path: str
    module: nn.Module

    @property
    def is_attention(self) -> bool:
        return isinstance(self.module, ATTENTION)


def branches(model: nn.Module) -> tuple[list[Branch], list[Skipped]]:
    """The attention and FFN branches of `model.blocks` that are understood, and those that are not.

    Raises:
        ModelError: the model has no `blocks`, so it is no plain vision transformer.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList):
        raise ModelError(
            f"{type(model).__name__} has no list of transformer blocks: only plain vision transformers can be compressed"
        )
    known, skipped = [], []
    for index, block in enumerate(blocks):
        for part in ("attn", "mlp"):
            path, module = f"blocks.{index}.{part}", getattr(block, part, None)
            if module is None:
                skipped.append(Skipped(name=path, reason=f"{type(block).__name__} has no separate {part} branch"))
            elif type(module) not in ATTENTION + _FFN or getattr(module, "qkv", module) is None:
                skipped.append(Skipped(name=path, reason=f"{type(module).__name__} with this layout is not known here"))
            else:
                known.append(Branch(path=path, module=module))
    return known, skipped


def describe(model: nn.Module, name: str = "contract", multiple: int = 8) -> Space:
    """The space called `name` for a dense timm model.

    Args:
        model: a dense timm model with `blocks`.
        name: which operators are offered.
        multiple: FFN widths and ranks are multiples of it. Head widths too, unless the head is narrower than eight
            multiples: then they are eighths of the head.

    Raises:
        ModelError: unknown space, or the model has no site in it.
    """
    if name not in OPERATORS:
        raise ModelError(f"unknown space {name!r}: choose one of {', '.join(get_args(SpaceName))}")
    if multiple < 1:
        raise ModelError(f"sizes must be rounded to a multiple of at least 1, got {multiple}")
    known, skipped = branches(model)
    offered: dict[str, tuple[Operator, ...]] = {}
    for branch in known:
        rivals = []
        for operator in OPERATORS[name][0 if branch.is_attention else 1]:
            sites, reasons = _SITES[operator](branch, multiple)
            skipped.extend(reasons)
            if sites:
                rivals.append(Operator(name=operator, sites=tuple(sites)))
        if rivals:
            offered[branch.path] = tuple(rivals)
    if not offered:
        reasons_text = "; ".join(f"{entry.name}: {entry.reason}" for entry in skipped[:3])
        raise ModelError(f"{type(model).__name__} has no site in space {name!r} ({reasons_text})")
    return Space(name=name, branches=offered, skipped=tuple(skipped))


def _attention_sites(branch: Branch, multiple: int) -> tuple[list[Site], list[Skipped]]:
    attention = branch.module
    dense: int = attention.head_dim  # type: ignore[assignment]
    step = max(1, min(multiple, dense // 8))
    refused = {"query_key": _query_key_obstacle(attention), "value_output": _value_output_obstacle(attention)}
    names: dict[Literal["query_key", "value_output"], str] = {"query_key": "qk", "value_output": "vo"}
    sites = [
        Site(name=f"{branch.path}.{short}", branch=branch.path, kind=kind, choices=_widths(dense, step))
        for kind, short in names.items()
        if refused[kind] is None
    ]
    reasons = [
        Skipped(name=f"{branch.path}.{short}", reason=reason) for kind, short in names.items() if (reason := refused[kind])
    ]
    return sites, reasons


def _head_sites(branch: Branch, multiple: int) -> tuple[list[Site], list[Skipped]]:
    """Whole heads, and the widths of those that stay."""
    sites, reasons = _attention_sites(branch, multiple)
    name = f"{branch.path}.heads"
    obstacle = _value_output_obstacle(branch.module) or _head_obstacle(branch.module)
    if obstacle:
        return sites, [*reasons, Skipped(name=name, reason=obstacle)]
    heads: int = branch.module.num_heads  # type: ignore[assignment]
    return [Site(name=name, branch=branch.path, kind="heads", choices=_widths(heads, 1)), *sites], reasons


def _gated_attention_sites(branch: Branch, multiple: int) -> tuple[list[Site], list[Skipped]]:
    """The widths behind VTP's gates in attention: its inputs, and channels of the head outputs."""
    inputs, refused = _input_sites(branch, "qkv", multiple)
    found, reasons = _attention_sites(branch, multiple)
    return [*inputs, *(site for site in found if site.kind == "value_output")], [*reasons, *refused]


def _gated_ffn_sites(branch: Branch, multiple: int) -> tuple[list[Site], list[Skipped]]:
    """The widths behind VTP's gates in an FFN: its inputs, and its neurons."""
    inputs, refused = _input_sites(branch, "fc1", multiple)
    neurons, reasons = _neuron_sites(branch, multiple)
    return [*inputs, *neurons], [*reasons, *refused]


def _input_sites(branch: Branch, first: str, multiple: int) -> tuple[list[Site], list[Skipped]]:
    name, linear = f"{branch.path}.inputs", getattr(branch.module, first, None)
    if not isinstance(linear, nn.Linear) or getattr(branch.module, "q_bias", None) is not None:
        reason = f"the first linear layer of {type(branch.module).__name__} is not a single plain one"
        return [], [Skipped(name=name, reason=reason)]
    return [Site(name=name, branch=branch.path, kind="inputs", choices=_widths(linear.in_features, multiple))], []


def _query_key_obstacle(attention: nn.Module) -> str | None:
    if not isinstance(attention.q_norm, nn.Identity) or not isinstance(attention.k_norm, nn.Identity):
        return "q/k normalisation acts between the projection and the product, so W_q and W_k cannot be contracted"
    if isinstance(attention, AttentionRope | EvaAttention):
        return "rotary positions act between the projection and the product, so W_q and W_k cannot be contracted"
    return None


def _value_output_obstacle(attention: nn.Module) -> str | None:
    if not isinstance(attention.norm, nn.Identity):
        return "a normalisation between the heads and the output projection mixes the head widths"
    if attention.gate is not None:
        return "a gate multiplies every channel between the heads and the output projection"
    if getattr(attention, "q_bias", None) is not None:
        return "EVA's separate query and value biases are not handled"
    return None


def _head_obstacle(attention: nn.Module) -> str | None:
    if getattr(attention, "num_kv_groups", 1) != 1:
        return "several heads share their keys and values"
    if isinstance(attention, AttentionRope | EvaAttention):
        return "rotary positions may differ from head to head"
    return None


def _neuron_sites(branch: Branch, multiple: int) -> tuple[list[Site], list[Skipped]]:
    name = f"{branch.path}.hidden"
    if not isinstance(branch.module.norm, nn.Identity):
        return [], [Skipped(name=name, reason="a normalisation over the hidden width depends on every neuron")]
    fc2 = branch.module.fc2
    if not isinstance(fc2, nn.Linear):
        return [], [Skipped(name=name, reason=f"{type(fc2).__name__} in place of a linear layer")]
    return [Site(name=name, branch=branch.path, kind="ffn_hidden", choices=_widths(fc2.in_features, multiple))], []


def _rank_sites(branch: Branch, multiple: int) -> tuple[list[Site], list[Skipped]]:
    if getattr(branch.module, "q_bias", None) is not None:
        return [], [Skipped(name=branch.path, reason="EVA's separate query and value biases are not handled")]
    sites, skipped = [], []
    for part in ("qkv", "proj") if branch.is_attention else ("fc1", "fc2"):
        name, linear = f"{branch.path}.{part}", getattr(branch.module, part, None)
        if not isinstance(linear, nn.Linear):
            skipped.append(Skipped(name=name, reason=f"{type(branch.module).__name__} has no single linear layer there"))
            continue
        rows, columns = linear.out_features, linear.in_features
        # A rank at break-even, mn / (m + n), costs as much as the dense layer; only smaller ones are offered.
        last = (rows * columns - 1) // (rows + columns)
        ranks = tuple(range(multiple, last + 1, multiple)) or (max(1, last),)
        choices = (*ranks, min(rows, columns))
        sites.append(Site(name=name, branch=branch.path, kind="rank", choices=choices, linear=(rows, columns)))
    return sites, skipped


def _rank_and_row_sites(branch: Branch, multiple: int) -> tuple[list[Site], list[Skipped]]:
    """Per linear its rank, and the rows that are kept whole beside the low-rank part."""
    ranks, skipped = _rank_sites(branch, multiple)
    sites = []
    for rank in ranks:
        assert rank.linear is not None
        choices = _widths(rank.linear[0], multiple)
        sites += [rank, replace(rank, name=f"{rank.name}_rows", kind="rows", choices=choices)]
    return sites, skipped


_SITES: dict[str, Callable[[Branch, int], tuple[list[Site], list[Skipped]]]] = {
    "contract": _attention_sites,
    "heads": _head_sites,
    "neurons": _neuron_sites,
    "low-rank": _rank_sites,
    "gated-attention": _gated_attention_sites,
    "gated-ffn": _gated_ffn_sites,
    "low-rank-sparse": _rank_and_row_sites,
}


def _widths(dense: int, step: int) -> tuple[int, ...]:
    return (*range(step, dense, step), dense)


def resize(model: nn.Module, space: Space, allocation: Allocation) -> None:
    """Give `model` the module structure of `allocation`, in place; linears whose shape changes get uninitialised weights.

    Sites at their dense size keep their modules and weights untouched.

    Raises:
        AllocationError: the space does not offer this allocation.
    """
    space.validate(allocation)
    for branch, rivals in space.branches.items():
        for operator in rivals:
            if operator.moves(allocation):
                moved = {site.part: allocation[site.name] for site in operator.sites if allocation[site.name] != site.dense}
                _RESIZE[operator.name](model, branch, operator.sizes(allocation), moved)


Sizes = dict[str, int]


def _resize_attention(model: nn.Module, path: str, sizes: Sizes, moved: Sizes) -> None:
    dense = model.get_submodule(path)
    heads: int = dense.num_heads  # type: ignore[assignment]
    width: int = dense.head_dim  # type: ignore[assignment]
    inputs: int = dense.get_submodule("qkv").in_features  # type: ignore[assignment]
    attention = ContractedAttention(
        dense, sizes.get("heads", heads), sizes.get("qk", width), sizes.get("vo", width), sizes.get("inputs", inputs)
    )
    model.set_submodule(path, attention)


def _resize_ffn(model: nn.Module, path: str, sizes: Sizes, moved: Sizes) -> None:
    ffn = model.get_submodule(path)
    fc2 = ffn.get_submodule("fc2")
    assert isinstance(fc2, nn.Linear)
    width = sizes.get("hidden", fc2.in_features)
    for name in ("fc1", "fc1_g", "fc1_x"):
        linear = getattr(ffn, name, None)
        if linear is not None:
            rows = 2 * width if isinstance(ffn, GluMlp) else width
            inputs = sizes.get("inputs", linear.in_features)
            setattr(ffn, name, selected_linear(linear.in_features, inputs, rows, linear.bias is not None))
    ffn.fc2 = empty_linear(width, fc2.out_features, bias=fc2.bias is not None)


def _resize_linears(model: nn.Module, path: str, sizes: Sizes, moved: Sizes) -> None:
    for part, rank in moved.items():
        linear = model.get_submodule(f"{path}.{part}")
        assert isinstance(linear, nn.Linear)
        low_rank = LowRankLinear(linear.in_features, linear.out_features, rank, bias=linear.bias is not None)
        model.set_submodule(f"{path}.{part}", low_rank)


def _resize_sparse(model: nn.Module, path: str, sizes: Sizes, moved: Sizes) -> None:
    for part in ("qkv", "proj", "fc1", "fc2"):
        if f"{part}_rows" in moved:
            linear = model.get_submodule(f"{path}.{part}")
            assert isinstance(linear, nn.Linear)
            shape = linear.in_features, linear.out_features, sizes[part], sizes[f"{part}_rows"]
            model.set_submodule(f"{path}.{part}", LowRankSparseLinear(*shape, bias=linear.bias is not None))


_RESIZE: dict[str, Callable[[nn.Module, str, Sizes, Sizes], None]] = {
    "contract": _resize_attention,
    "heads": _resize_attention,
    "neurons": _resize_ffn,
    "low-rank": _resize_linears,
    "gated-attention": _resize_attention,
    "gated-ffn": _resize_ffn,
    "low-rank-sparse": _resize_sparse,
}
