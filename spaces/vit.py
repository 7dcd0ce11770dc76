"""Which sites a timm vision transformer has, why some places have none, and the structure that an allocation gives it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from timm.layers import Attention as TimmAttention
from timm.layers import AttentionRope, GluMlp, Mlp, SwiGLU
from timm.models.eva import EvaAttention
from torch import nn

from spaces.allocation import Allocation
from spaces.errors import ModelError
from spaces.modules import ContractedAttention, LowRankLinear, empty_linear
from spaces.sites import Operator, Site, Skipped, Space

SpaceName = Literal["contract", "hybrid", "low-rank", "full"]

# Space -> rival operators of an attention and of an FFN branch.
OPERATORS: dict[SpaceName, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "contract": (("contract",), ("neurons",)),
    "hybrid": (("low-rank",), ("neurons",)),
    "low-rank": (("low-rank",), ("low-rank",)),
    "full": (("contract", "low-rank"), ("neurons", "low-rank")),
}

# timm's own classes only: a subclass may compute something else in the same attributes.
_ATTENTION = (TimmAttention, AttentionRope, EvaAttention)
_FFN = (Mlp, GluMlp, SwiGLU)


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One residual branch of a block, with its timm module."""

    path: str
    module: nn.Module

    @property
    def is_attention(self) -> bool:
        return isinstance(self.module, _ATTENTION)


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
            elif type(module) not in _ATTENTION + _FFN or getattr(module, "qkv", module) is None:
                skipped.append(Skipped(name=path, reason=f"{type(module).__name__} with this layout is not known here"))
            else:
                known.append(Branch(path=path, module=module))
    return known, skipped


def describe(model: nn.Module, name: SpaceName = "contract", multiple: int = 8) -> Space:
    """The space called `name` for a dense timm model.

    Args:
        model: a dense timm model with `blocks`.
        name: which operators are offered.
        multiple: FFN widths and ranks are multiples of it. Head widths too, unless the head is narrower than eight
            multiples: then they are eighths of the head.

    Raises:
        ModelError: unknown space, or the model has no site in it.
    """
    if name not in get_args(SpaceName):
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


_SITES: dict[str, Callable[[Branch, int], tuple[list[Site], list[Skipped]]]] = {
    "contract": _attention_sites,
    "neurons": _neuron_sites,
    "low-rank": _rank_sites,
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
            sizes = {site.name.rpartition(".")[2]: allocation[site.name] for site in operator.sites}
            moved = {site.name.rpartition(".")[2] for site in operator.sites if allocation[site.name] != site.dense}
            if moved:
                _RESIZE[operator.name](model, branch, sizes, moved)


def _resize_attention(model: nn.Module, path: str, sizes: dict[str, int], moved: set[str]) -> None:
    dense = model.get_submodule(path)
    width: int = dense.head_dim  # type: ignore[assignment]
    model.set_submodule(path, ContractedAttention(dense, sizes.get("qk", width), sizes.get("vo", width)))


def _resize_ffn(model: nn.Module, path: str, sizes: dict[str, int], moved: set[str]) -> None:
    ffn, width = model.get_submodule(path), sizes["hidden"]
    for name in ("fc1", "fc1_g", "fc1_x"):
        linear = getattr(ffn, name, None)
        if linear is not None:
            rows = 2 * width if isinstance(ffn, GluMlp) else width
            setattr(ffn, name, empty_linear(linear.in_features, rows, bias=linear.bias is not None))
    fc2 = ffn.get_submodule("fc2")
    assert isinstance(fc2, nn.Linear)
    ffn.fc2 = empty_linear(width, fc2.out_features, bias=fc2.bias is not None)


def _resize_linears(model: nn.Module, path: str, sizes: dict[str, int], moved: set[str]) -> None:
    for part in moved:
        linear = model.get_submodule(f"{path}.{part}")
        assert isinstance(linear, nn.Linear)
        low_rank = LowRankLinear(linear.in_features, linear.out_features, sizes[part], bias=linear.bias is not None)
        model.set_submodule(f"{path}.{part}", low_rank)


_RESIZE: dict[str, Callable[[nn.Module, str, dict[str, int], set[str]], None]] = {
    "contract": _resize_attention,
    "neurons": _resize_ffn,
    "low-rank": _resize_linears,
}
