"""The space of a timm vision transformer, and the structure that an allocation gives the model."""

from typing import get_args

from torch import nn

from spaces.allocation import Allocation
from spaces.branches import branches
from spaces.errors import ModelError
from spaces.operators.registry import OPERATORS, SEARCHED, SPACES
from spaces.sites import DROP, Operator, Role, Skipped, Space, SpaceName
from spaces.tokens.sites import token_sites
from spaces.tokens.structure import reduce_tokens


def describe(model: nn.Module, name: str = "contract", multiple: int = 8) -> Space:
    """The space called `name` for a dense timm model.

    Args:
        model: a dense timm model with `blocks`.
        name: which operators are offered.
        multiple: FFN widths and ranks are multiples of it. Head widths too, unless the head is narrower than eight
            multiples: then they are eighths of the head. Half of the smallest head width is offered as well.

    Raises:
        ModelError: unknown space, or the model has no site in it.
    """
    if name not in SPACES:
        raise ModelError(f"unknown space {name!r}: choose one of {', '.join(get_args(SpaceName))}")
    if multiple < 1:
        raise ModelError(f"sizes must be rounded to a multiple of at least 1, got {multiple}")
    known, skipped = branches(model)
    offered: dict[str, tuple[Operator, ...]] = {}
    roles: dict[str, Role] = {}
    for branch in known:
        rivals = []
        for operator in (*SPACES[name][branch.role], *((DROP,) if name in SEARCHED else ())):
            sites, reasons = OPERATORS[operator].sites(branch, multiple)
            skipped.extend(reasons)
            if sites:
                rivals.append(Operator(name=operator, sites=tuple(sites)))
        if any(rival.name != DROP for rival in rivals):
            offered[branch.path], roles[branch.path] = tuple(rivals), branch.role
    if not offered:
        raise ModelError(f"{type(model).__name__} has no site in space {name!r} ({_reasons(skipped[:3])})")
    tokens, reasons = token_sites(model)
    return Space(name=name, branches=offered, roles=roles, tokens=tuple(tokens), skipped=(*skipped, *reasons))


def resize(model: nn.Module, space: Space, allocation: Allocation) -> None:
    """Give `model` the module structure of `allocation`, in place; linears whose shape changes get uninitialised weights.

    Sites at their dense size keep their modules and weights untouched.

    Raises:
        AllocationError: the space does not offer this allocation.
    """
    space.validate(allocation)
    for branch, operator in space.moved(allocation):
        moved = {site.part: allocation[site.name] for site in operator.sites if allocation[site.name] != site.dense}
        OPERATORS[operator.name].resize(model, branch, operator.sizes(allocation), moved)
    if space.tokens:
        reduce_tokens(model, space.schedule(allocation))


def _reasons(skipped: list[Skipped]) -> str:
    return "; ".join(f"{entry.name}: {entry.reason}" for entry in skipped)
