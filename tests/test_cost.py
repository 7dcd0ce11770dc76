"""MACs and parameters: by hand, and against two independent counters."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from objectives.cost.closed_form import cost_model
from objectives.cost.tracing import fvcore_macs, torch_macs
from spaces.allocation import Allocation
from spaces.errors import CountError
from spaces.models.create import input_size
from spaces.vit import describe, resize

MODELS = [
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
    pytest.param("vit_small_patch14_reg4_dinov2", marks=pytest.mark.long),  # 1,374 tokens
    "vit_small_patch16_dinov3",
    "vit_wee_patch16_reg1_gap_256",
    "vit_base_patch16_siglip_224",
    "vit_medium_patch16_gap_240",
    "flexivit_small",
    "eva02_tiny_patch14_224",
    "vit_tiny_r_s16_p8_224",
    "test_vit",
]


def test_a_plain_block_by_hand(make_vit: Callable[..., nn.Module]) -> None:
    """16x16 images, patches of 4: 17 tokens of 32; 2 blocks of 2 heads; FFN 128; 5 classes."""
    model = make_vit()
    costs = cost_model(model, describe(model))
    tokens, dim = 17, 32
    block = tokens * dim * 3 * dim + 2 * tokens * tokens * dim + tokens * dim * dim + 2 * tokens * dim * 128
    assert costs.dense["macs"] == 16 * 3 * 4 * 4 * dim + 2 * block + dim * 5
    assert costs.dense["params"] == sum(p.numel() for p in model.parameters())
    identity = describe(model).identity()
    narrow = identity.replace({"blocks.0.attn.qk": 8, "blocks.1.mlp.hidden": 64})
    assert costs.dense["macs"] - costs.count(narrow, "macs") == 2 * 8 * tokens * (2 * dim + tokens) + 64 * tokens * 2 * dim
    assert costs.dense["params"] - costs.count(narrow, "params") == 2 * 8 * 2 * (dim + 1) + 64 * (2 * dim + 1)


@pytest.mark.parametrize("name", MODELS)
def test_closed_form_equals_both_counters(name: str) -> None:
    """Dense, and with every kind of site cut, in turn."""
    model = timm.create_model(name, num_classes=10).eval()
    size, space = input_size(model), describe(model, "full")
    costs = cost_model(model, space)
    assert fvcore_macs(model, size) == torch_macs(model, size) == costs.dense["macs"]
    operators = {branch: rivals[index % len(rivals)] for index, (branch, rivals) in enumerate(space.branches.items())}
    cut = {site.name: site.choices[len(site.choices) // 3] for operator in operators.values() for site in operator.sites}
    allocation = space.identity().replace(cut)
    small = copy.deepcopy(model)
    resize(small, space, allocation)
    assert fvcore_macs(small, size) == torch_macs(small, size) == costs.count(allocation, "macs") < costs.dense["macs"]
    assert sum(p.numel() for p in small.parameters()) == costs.count(allocation, "params") < costs.dense["params"]


def test_costs_fall_with_every_size(make_vit: Callable[..., nn.Module]) -> None:
    model = make_vit()
    space = describe(model, "full")
    costs = cost_model(model, space)
    for site in space.sites:
        for cost in ("macs", "params"):
            counts = [costs.count(space.identity().replace({site.name: size}), cost) for size in site.choices]
            assert counts == sorted(set(counts)), f"{cost} of {site.name}"


def test_unknown_operators_are_an_error_never_a_zero() -> None:
    class Sort(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            values: torch.Tensor = torch.linalg.svdvals(x * self.weight)
            return values

    with pytest.raises(CountError, match="linalg_svdvals"):
        fvcore_macs(Sort(), (1, 4, 4))


def test_counting_leaves_the_model_as_it_was(make_vit: Callable[..., nn.Module]) -> None:
    model = make_vit()
    torch_macs(model, (3, 16, 16))
    assert all(block.attn.fused_attn for block in model.blocks)  # type: ignore[union-attr]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_allocations_are_counted_in_any_order(make_vit: Callable[..., nn.Module]) -> None:
    model = make_vit()
    space = describe(model)
    costs = cost_model(model, space)
    sizes = {**space.identity(), **{site.name: site.choices[1] for site in space.sites}}
    backwards = Allocation(dict(reversed(sizes.items())))
    assert costs.costs(Allocation(sizes)) == costs.costs(backwards)
