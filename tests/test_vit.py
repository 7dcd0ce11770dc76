"""Which sites are offered, with sizes derived by hand, and why others are not."""

from collections.abc import Callable

import pytest
import timm
from local_vits import site_of, widths
from torch import nn

from spaces.errors import ModelError
from spaces.vit import describe

Make = Callable[..., nn.Module]


def test_contract_offers_heads_and_neurons(make_vit: Make) -> None:
    """dim 32, 2 heads of 16 (eighths: 2, and half of one), FFN of 128 (multiples of 8)."""
    space = describe(make_vit(), "contract")
    assert [site.name for site in space.sites] == [
        f"blocks.{i}.{s}" for i in (0, 1) for s in ("attn.qk", "attn.vo", "attn.branch", "mlp.hidden", "mlp.branch")
    ]
    assert site_of(space, "blocks.0.attn.qk").choices == (1, 2, 4, 6, 8, 10, 12, 14, 16)
    assert site_of(space, "blocks.0.mlp.hidden").choices == tuple(range(8, 129, 8))
    assert {site.choices for site in space.sites if site.kind == "branch"} == {(0, 1)}
    assert space.skipped == ()


def test_ranks_end_below_break_even(make_vit: Make) -> None:
    """qkv 96x32: break-even 24; proj 32x32: 16; fc1 128x32: 25.6. A rank at break-even saves nothing."""
    space = describe(make_vit(), "low-rank")
    choices = {site.name: site.choices for site in widths(space) if site.name.startswith("blocks.0")}
    assert choices == {
        "blocks.0.attn.qkv": (8, 16, 32),
        "blocks.0.attn.proj": (8, 32),
        "blocks.0.mlp.fc1": (8, 16, 24, 32),
        "blocks.0.mlp.fc2": (8, 16, 24, 32),
    }


def test_hybrid_and_full_offer_kumars_shape_and_the_choice(make_vit: Make) -> None:
    hybrid, full = describe(make_vit(), "hybrid"), describe(make_vit(), "full")
    assert {operator.name for rivals in hybrid.branches.values() for operator in rivals} == {"low-rank", "neurons", "drop"}
    assert [operator.name for operator in full.branches["blocks.0.attn"]] == ["contract", "low-rank", "drop"]
    assert [operator.name for operator in full.branches["blocks.1.mlp"]] == ["neurons", "low-rank", "drop"]


def test_multiple_of_a_real_model() -> None:
    space = describe(timm.create_model("deit_tiny_patch16_224"), "contract", multiple=16)
    assert site_of(space, "blocks.0.attn.qk").choices == (4, *range(8, 65, 8))  # 64 is narrower than eight multiples of 16
    assert site_of(space, "blocks.0.mlp.hidden").choices == tuple(range(16, 769, 16))


@pytest.mark.parametrize(
    ("options", "site", "reason"),
    [
        ({"qk_norm": True}, "blocks.0.attn.qk", "q/k normalisation"),
        ({"name": "vit_small_patch16_dinov3"}, "blocks.0.attn.qk", "rotary positions"),
        ({"scale_attn_norm": True}, "blocks.0.attn.vo", "normalisation between the heads"),
        ({"scale_mlp_norm": True}, "blocks.0.mlp.hidden", "normalisation over the hidden width"),
    ],
)
def test_what_is_not_offered_says_why(make_vit: Make, options: dict[str, object], site: str, reason: str) -> None:
    space = describe(make_vit(**options), "contract")
    assert site not in {entry.name for entry in space.sites}
    assert reason in {entry.name: entry.reason for entry in space.skipped}[site]
    assert space.sites, "the other sites stay"


def test_models_without_a_site_are_refused(make_vit: Make) -> None:
    with pytest.raises(ModelError, match="ParallelScalingBlock"):
        describe(make_vit("vit_base_patch16_xp_224"), "contract")
    with pytest.raises(ModelError, match="no list of transformer blocks"):
        describe(timm.create_model("resnet10t"), "contract")
    with pytest.raises(ModelError, match="unknown space 'contrat'"):
        describe(make_vit(), "contrat")
