"""Branches that are left out: what remains of one is its mean output, as a bias."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import nn

from spaces.branches import ATTENTION, Branch
from spaces.modules import ConstantBranch
from spaces.operators.attention import attention_cost
from spaces.operators.base import Count, FoundSites, OperatorSpec, SiteKind, Sizes, Tensors, Timing, Tokens, Variant
from spaces.operators.linears import linear_of
from spaces.operators.metric import root_of, seen_through
from spaces.operators.neurons import ffn_cost
from spaces.sites import DROP, Site
from spaces.statistics import Moments


def _branch_site(branch: Branch, multiple: int) -> FoundSites:
    return [Site(name=f"{branch.path}.branch", branch=branch.path, kind="branch", choices=(0, 1))], []


def _mean_output(dense: nn.Module, site: Site, moments: Moments | None, device: torch.device) -> Tensors:
    """The mean of a branch's output, and what is lost with all that varies about it."""
    assert moments is not None
    weight, bias = linear_of(dense, _last(dense, site.branch))
    weight = weight.cpu().double()
    mean = weight @ moments.mean + (0 if bias is None else bias.cpu().double())
    seen = seen_through(root_of(moments, torch.device("cpu")), weight)
    lost = ((seen @ moments.covariance) * seen).sum()
    return {"mean": mean, "error": torch.stack([lost, torch.zeros_like(lost)])}


def _last(dense: nn.Module, branch: str) -> str:
    """Name of the linear that makes the output of a branch."""
    return f"{branch}.{'proj' if hasattr(dense.get_submodule(branch), 'proj') else 'fc2'}"


def _resize(model: nn.Module, path: str, sizes: Sizes, moved: Sizes) -> None:
    last = model.get_submodule(_last(model, path))
    model.set_submodule(path, ConstantBranch(last.out_features))  # type: ignore[arg-type]


def _fill(dense: nn.Module, model: nn.Module, branch: str, sizes: Sizes, factors: Mapping[str, Tensors]) -> None:
    constant = model.get_submodule(branch)
    assert isinstance(constant, ConstantBranch)
    constant.bias.copy_(factors["branch"]["mean"])


def dense_cost(branch: nn.Module, tokens: Tokens) -> Count:
    """MACs of a dense branch, and parameters of its linear layers."""
    cost = attention_cost if isinstance(branch, ATTENTION) else ffn_cost
    macs, _ = cost(branch, (), tokens)({})
    return macs, sum(parameter.numel() for parameter in branch.parameters())


def _cost(branch: nn.Module, sites: Sequence[Site], tokens: Tokens) -> Callable[[Sizes], Count]:
    last = branch.get_submodule("proj" if hasattr(branch, "proj") else "fc2")
    return partial(_count, whole=dense_cost(branch, tokens), dropped=(0, last.out_features))  # type: ignore[arg-type]


def _count(sizes: Sizes, whole: Count, dropped: Count) -> Count:
    return whole if sizes["branch"] else dropped


DROPPED = OperatorSpec(
    name=DROP,
    sites=_branch_site,
    kinds={
        "branch": SiteKind(counts="branches", readers=("proj", "fc2"), variants={"mean": Variant(compute=_mean_output)}),
    },
    resize=_resize,
    fill=_fill,
    cost=_cost,
    timing=Timing(together=False, continuous=False),
)
