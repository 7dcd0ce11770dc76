"""Removing whole heads: what it saves, and what is corrected."""

import copy

import numpy as np
import pytest
import torch
from local_vits import (
    HEADS,
    KINDS,
    MakeVit,
    factors_of,
    fused_and_unfused,
    order_of,
    parameters,
    relative_error,
    seen_at,
    site_of,
    widths,
    with_four_heads,
)
from torch import Tensor

from objectives.cost.closed_form import cost_model
from objectives.cost.tracing import fvcore_macs, torch_macs
from spaces.errors import AllocationError
from spaces.factors import Factors
from spaces.operators.registry import KINDS as SITE_KINDS
from spaces.vit import describe, resize

SIZE = (3, 16, 16)
RANKINGS = list(SITE_KINDS["heads"].variants)
PLACED = [kind for kind in KINDS if kind not in ("rotary", "gated FFN")]  # kinds with heads to remove


# What is saved


def test_one_head_removes_exactly_these_parameters(make_vit: MakeVit, images: Tensor) -> None:
    """A head of width 8 in a model of width 32: queries, keys and values 3 x 8 x (32 + 1), output projection 8 x 32."""
    model = with_four_heads(make_vit)
    space = describe(model, "heads", multiple=4)
    factors, costs = factors_of(model, images, "heads"), cost_model(model, space)

    def removed(sizes: dict[str, int]) -> int:
        allocation = space.identity().replace(sizes)
        count = parameters(factors.build(allocation))
        assert count == costs.count(allocation, "params")
        return parameters(model) - count

    head = 3 * 8 * 33 + 8 * 32
    assert removed({"blocks.0.attn.heads": 3}) == head
    assert removed({"blocks.0.attn.heads": 3, "blocks.1.attn.heads": 1}) == 4 * head
    narrow = 2 * (2 * 5 + 3) * 33 + 2 * 3 * 32  # two heads with queries and keys of width 5 and values of width 3
    assert removed({"blocks.0.attn.heads": 2, "blocks.0.attn.qk": 5, "blocks.0.attn.vo": 3}) == 4 * head - narrow


def test_one_head_removes_exactly_these_macs(make_vit: MakeVit) -> None:
    """17 tokens: 17 x 32 x 24 for queries, keys and values, 17 x 17 x 8 for either product, 17 x 8 x 32 for the output."""
    model = with_four_heads(make_vit)
    space = describe(model, "heads", multiple=4)
    costs = cost_model(model, space)
    cut = space.identity().replace({"blocks.1.attn.heads": 3})
    assert costs.dense["macs"] - costs.count(cut, "macs") == 17 * 32 * 24 + 2 * 17 * 17 * 8 + 17 * 8 * 32


@pytest.mark.parametrize("kind", ["plain", "distilled", "layer-scale", "no class token", "no qkv bias", "q/k norm"])
@pytest.mark.parametrize("name", ["heads", "gated", "low-rank-sparse"])
def test_costs_equal_both_counters(make_vit: MakeVit, kind: str, name: str) -> None:
    """Every site cut, to a different share in every branch."""
    model = with_four_heads(make_vit, kind)
    space = describe(model, name, multiple=4)
    sizes = {site.name: site.choices[(1 + index) % (len(site.choices) - 1)] for index, site in enumerate(widths(space))}
    allocation, costs = space.identity().replace(sizes), cost_model(model, space)
    small = copy.deepcopy(model)
    resize(small, space, allocation)
    assert fvcore_macs(small, SIZE) == torch_macs(small, SIZE) == costs.count(allocation, "macs") < costs.dense["macs"]
    assert parameters(small) == costs.count(allocation, "params") < costs.dense["params"]


def test_one_head_always_stays(make_vit: MakeVit) -> None:
    space = describe(with_four_heads(make_vit), "heads", multiple=4)
    sites = [site for site in space.sites if site.kind == "heads"]
    assert [site.choices for site in sites] == [(1, 2, 3, 4)] * 2
    for size in (0, 5):
        with pytest.raises(AllocationError, match="choose one of 1, 2, 3, 4"):
            space.validate(space.identity().replace({sites[0].name: size}))


def test_heads_are_not_offered_where_they_share_or_rotate(make_vit: MakeVit) -> None:
    model = make_vit(**KINDS["rotary"])
    space = describe(model, "heads", multiple=4)
    assert not [site for site in space.sites if site.kind == "heads"]
    assert any(entry.name == "blocks.0.attn.heads" and "rotary" in entry.reason for entry in space.skipped)


# What is built


@pytest.mark.parametrize("kind", PLACED)
def test_fused_equals_unfused_attention(make_vit: MakeVit, images: Tensor, kind: str) -> None:
    factors = factors_of(with_four_heads(make_vit, kind), images, "heads")
    space = factors.space
    model = factors.build(
        space.identity().replace(
            {site.name: 3 - index % 2 for index, site in enumerate(space.sites) if site.kind in ("heads", "value_output")}
        )
    )
    fused, unfused = fused_and_unfused(model, images)
    assert torch.allclose(unfused, fused, atol=1e-4)
    with torch.no_grad():
        assert not torch.allclose(fused, factors.dense(images), atol=1e-3), "nothing was removed"


@pytest.mark.parametrize("kind", ["plain", "q/k norm"])
def test_the_kept_heads_attend_as_they_did(make_vit: MakeVit, images: Tensor, kind: str) -> None:
    """Without a correction, a model with fewer heads is the dense one with zero output weights of the others."""
    model = with_four_heads(make_vit, kind)
    space = describe(model, "heads", multiple=4)
    scores = {
        site.name: torch.rand(site.dense if site.kind != "value_output" else (HEADS, 8)).sort(descending=True).values
        for site in widths(space)
        if site.kind != "query_key"
    }
    scores |= {site.name: torch.rand(HEADS, 8) for site in space.sites if site.kind == "query_key"}
    ranking = {"blocks.0.attn.heads": torch.tensor([0.1, 0.7, 0.0, 0.9]), "blocks.1.attn.heads": torch.tensor([3, 2, 1, 0.0])}
    built = Factors.compute(model, space, [], scores=scores | ranking, sites=widths(space)).build(
        space.identity().replace({"blocks.0.attn.heads": 2, "blocks.1.attn.heads": 1})
    )
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for block, kept in ((0, {1, 3}), (1, {0})):
            columns = [8 * head + channel for head in range(HEADS) if head not in kept for channel in range(8)]
            masked.get_parameter(f"blocks.{block}.attn.proj.weight")[:, columns] = 0
        assert torch.allclose(built(images), masked(images), atol=1e-5)


@pytest.mark.parametrize("ranking", ["elimination", "energy", "graph"])
@pytest.mark.parametrize("kind", ["plain", "no projection bias", "layer-scale"])
def test_closed_form_error_is_the_measured_one(make_vit: MakeVit, images: Tensor, kind: str, ranking: str) -> None:
    factors = factors_of(with_four_heads(make_vit, kind), images, "heads", variants={"heads": ranking}, gradients=False)
    site = site_of(factors.space, "blocks.0.attn.heads")
    for size in (1, 2, 3):
        model = factors.build(factors.space.identity().replace({site.name: size}))
        (_, found), (_, dense) = (seen_at(entry, "blocks.0.attn", images) for entry in (model, factors.dense))
        assert float((found - dense).square().sum(-1).mean()) == pytest.approx(factors.error(site)[size], rel=0.02)
    errors = list(factors.error(site).values())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0


@pytest.mark.parametrize("kind", ["plain", "no projection bias"])
def test_fewer_and_narrower_heads_get_the_least_squares_projection(make_vit: MakeVit, images: Tensor, kind: str) -> None:
    """Fitted anew on the samples themselves by NumPy, the projection of what is left is no better."""
    factors = factors_of(with_four_heads(make_vit, kind), images, "heads", gradients=False)
    sizes = {"blocks.0.attn.heads": 3, "blocks.0.attn.vo": 3}
    model = factors.build(factors.space.identity().replace(sizes))
    inputs, found = (entry.flatten(0, 1).double().numpy() for entry in seen_at(model, "blocks.0.attn.proj", images))
    wanted = seen_at(factors.dense, "blocks.0.attn.proj", images)[1].flatten(0, 1).double().numpy()
    if kind == "plain":
        inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    best = inputs @ np.linalg.lstsq(inputs, wanted, rcond=None)[0]
    least, reached = ((wanted - entry) ** 2 for entry in (best, found))
    assert 0.01 * (wanted**2).sum() < least.sum() <= reached.sum() * (1 + 1e-6)
    assert reached.sum() < 1.01 * least.sum()


@pytest.mark.parametrize("ranking", RANKINGS)
def test_the_correction_is_worth_it(make_vit: MakeVit, images: Tensor, ranking: str) -> None:
    model = with_four_heads(make_vit)
    errors = []
    for variants in ({"heads": ranking}, {"heads": ranking, "value_output": "magnitude"}):
        factors = factors_of(model, images, "heads", variants=variants)
        built = factors.build(factors.space.identity().replace({"blocks.0.attn.heads": 2}))
        errors.append(relative_error(built, model, images))
    assert errors[0] < 0.95 * errors[1]


@pytest.mark.parametrize("ranking", RANKINGS)
def test_every_ranking_orders_all_heads_and_keeps_the_identity(make_vit: MakeVit, images: Tensor, ranking: str) -> None:
    factors = factors_of(with_four_heads(make_vit), images, "heads", variants={"heads": ranking})
    for block in (0, 1):
        assert sorted(order_of(factors, block)) == [0, 1, 2, 3]
    with torch.no_grad():
        assert torch.equal(factors.build(factors.space.identity())(images), factors.dense(images))


def test_unknown_ranking_lists_the_known(make_vit: MakeVit, images: Tensor) -> None:
    with pytest.raises(ValueError, match="'best' of heads: choose one of elimination, energy, magnitude, taylor, graph"):
        factors_of(with_four_heads(make_vit), images, "heads", variants={"heads": "best"})
