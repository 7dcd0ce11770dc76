"""Removing whole heads: what it saves, what is corrected, which heads go first; and plain slicing by given scores."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_factors import KINDS
from torch import Tensor, nn

from objectives.cost import cost_model
from objectives.count import fvcore_macs, torch_macs
from spaces.allocation import Allocation
from spaces.errors import AllocationError
from spaces.factors import Factors
from spaces.heads import elimination_scores, energy_scores, magnitude_scores, taylor_scores
from spaces.operators import VARIANTS
from spaces.pruning import DAMPING, prefix_factors, prefix_weight, subset_weight
from spaces.sites import Site, Space
from spaces.vit import describe, resize

MakeVit = Callable[..., nn.Module]
SIZE = (3, 16, 16)
HEADS = 4  # of width 8, in a model of width 32
RANKINGS = list(VARIANTS["heads"])
PLACED = [kind for kind in KINDS if kind not in ("rotary", "gated FFN")]  # kinds with heads to remove


def model_of(make_vit: MakeVit, kind: str = "plain") -> nn.Module:
    return make_vit(**{**KINDS[kind], "num_heads": HEADS})


def factors_of(model: nn.Module, images: Tensor, variants: dict[str, str] | None = None, **options: Any) -> Factors:
    return Factors.compute(
        model,
        describe(model, "heads", multiple=4),
        images.split(16),  # type: ignore[no-untyped-call]
        variants=variants,  # type: ignore[arg-type]
        **options,
    )


def site_of(space: Space, name: str) -> Site:
    return next(site for site in space.sites if site.name == name)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def order_of(factors: Factors, block: int = 0) -> list[int]:
    """Heads of a block, the most important one first."""
    order: list[int] = factors._of(site_of(factors.space, f"blocks.{block}.attn.heads"))["order"].int().tolist()
    return order


def seen_at(model: nn.Module, name: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of a module, tokens of all images in a row."""
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda module, args, output: seen.extend([args[0], output]))
    with torch.no_grad():
        model(images)
    handle.remove()
    return seen[0].flatten(0, 1), seen[1].flatten(0, 1)


def relative_error(model: nn.Module, dense: nn.Module, images: Tensor, branch: str = "blocks.0.attn") -> float:
    (_, found), (_, wanted) = (seen_at(entry, branch, images) for entry in (model, dense))
    return float((found - wanted).square().sum() / wanted.square().sum())


# What is saved


def test_one_head_removes_exactly_these_parameters(make_vit: MakeVit, images: Tensor) -> None:
    """A head of width 8 in a model of width 32: queries, keys and values 3 x 8 x (32 + 1), output projection 8 x 32."""
    model = model_of(make_vit)
    space = describe(model, "heads", multiple=4)
    factors, costs = Factors.compute(model, space, images.split(16)), cost_model(model, space)  # type: ignore[no-untyped-call]

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
    model = model_of(make_vit)
    space = describe(model, "heads", multiple=4)
    costs = cost_model(model, space)
    cut = space.identity().replace({"blocks.1.attn.heads": 3})
    assert costs.dense["macs"] - costs.count(cut, "macs") == 17 * 32 * 24 + 2 * 17 * 17 * 8 + 17 * 8 * 32


@pytest.mark.parametrize("kind", ["plain", "distilled", "layer-scale", "no class token", "no qkv bias", "q/k norm"])
@pytest.mark.parametrize("name", ["heads", "gated", "low-rank-sparse"])
def test_costs_equal_both_counters(make_vit: MakeVit, kind: str, name: str) -> None:
    """Every site cut, to a different share in every branch."""
    model = model_of(make_vit, kind)
    space = describe(model, name, multiple=4)
    sizes = {site.name: site.choices[(1 + index) % (len(site.choices) - 1)] for index, site in enumerate(space.sites)}
    allocation, costs = Allocation(sizes), cost_model(model, space)
    small = copy.deepcopy(model)
    resize(small, space, allocation)
    assert fvcore_macs(small, SIZE) == torch_macs(small, SIZE) == costs.count(allocation, "macs") < costs.dense["macs"]
    assert parameters(small) == costs.count(allocation, "params") < costs.dense["params"]


def test_one_head_always_stays(make_vit: MakeVit) -> None:
    space = describe(model_of(make_vit), "heads", multiple=4)
    sites = [site for site in space.sites if site.kind == "heads"]
    assert [site.choices for site in sites] == [(1, 2, 3, 4)] * 2
    with pytest.raises(AllocationError, match="positive"):
        space.identity().replace({sites[0].name: 0})
    with pytest.raises(AllocationError, match="choose one of 1, 2, 3, 4"):
        space.validate(space.identity().replace({sites[0].name: 5}))


def test_heads_are_not_offered_where_they_share_or_rotate(make_vit: MakeVit) -> None:
    model = make_vit(**KINDS["rotary"])
    space = describe(model, "heads", multiple=4)
    assert not [site for site in space.sites if site.kind == "heads"]
    assert any(entry.name == "blocks.0.attn.heads" and "rotary" in entry.reason for entry in space.skipped)


# What is built


@pytest.mark.parametrize("kind", PLACED)
def test_fused_equals_unfused_attention(make_vit: MakeVit, images: Tensor, kind: str) -> None:
    factors = factors_of(model_of(make_vit, kind), images)
    space = factors.space
    model = factors.build(
        space.identity().replace(
            {site.name: 3 - index % 2 for index, site in enumerate(space.sites) if site.kind in ("heads", "value_output")}
        )
    )
    with torch.no_grad():
        fused = model(images)
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
        assert torch.allclose(model(images), fused, atol=1e-4)
        assert not torch.allclose(fused, factors.dense(images), atol=1e-3), "nothing was removed"


@pytest.mark.parametrize("kind", ["plain", "q/k norm"])
def test_the_kept_heads_attend_as_they_did(make_vit: MakeVit, images: Tensor, kind: str) -> None:
    """Without a correction, a model with fewer heads is the dense one with zero output weights of the others."""
    model = model_of(make_vit, kind)
    space = describe(model, "heads", multiple=4)
    scores = {
        site.name: torch.rand(site.dense if site.kind != "value_output" else (HEADS, 8)).sort(descending=True).values
        for site in space.sites
        if site.kind != "query_key"
    }
    scores |= {site.name: torch.rand(HEADS, 8) for site in space.sites if site.kind == "query_key"}
    ranking = {"blocks.0.attn.heads": torch.tensor([0.1, 0.7, 0.0, 0.9]), "blocks.1.attn.heads": torch.tensor([3, 2, 1, 0.0])}
    built = Factors.compute(model, space, [], scores=scores | ranking).build(
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
    factors = factors_of(model_of(make_vit, kind), images, {"heads": ranking}, gradients=False)
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
    factors = factors_of(model_of(make_vit, kind), images, gradients=False)
    sizes = {"blocks.0.attn.heads": 3, "blocks.0.attn.vo": 3}
    model = factors.build(factors.space.identity().replace(sizes))
    inputs, found = (entry.double().numpy() for entry in seen_at(model, "blocks.0.attn.proj", images))
    wanted = seen_at(factors.dense, "blocks.0.attn.proj", images)[1].double().numpy()
    if kind == "plain":
        inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    best = inputs @ np.linalg.lstsq(inputs, wanted, rcond=None)[0]
    least, reached = ((wanted - entry) ** 2 for entry in (best, found))
    assert 0.01 * (wanted**2).sum() < least.sum() <= reached.sum() * (1 + 1e-6)
    assert reached.sum() < 1.01 * least.sum()


@pytest.mark.parametrize("ranking", RANKINGS)
def test_the_correction_is_worth_it(make_vit: MakeVit, images: Tensor, ranking: str) -> None:
    model = model_of(make_vit)
    errors = []
    for variants in ({"heads": ranking}, {"heads": ranking, "value_output": "magnitude"}):
        factors = factors_of(model, images, variants)
        built = factors.build(factors.space.identity().replace({"blocks.0.attn.heads": 2}))
        errors.append(relative_error(built, model, images))
    assert errors[0] < 0.95 * errors[1]


@pytest.mark.parametrize("ranking", RANKINGS)
def test_every_ranking_orders_all_heads_and_keeps_the_identity(make_vit: MakeVit, images: Tensor, ranking: str) -> None:
    factors = factors_of(model_of(make_vit), images, {"heads": ranking})
    for block in (0, 1):
        assert sorted(order_of(factors, block)) == [0, 1, 2, 3]
    with torch.no_grad():
        assert torch.equal(factors.build(factors.space.identity())(images), factors.dense(images))


def test_unknown_ranking_lists_the_known(make_vit: MakeVit, images: Tensor) -> None:
    with pytest.raises(ValueError, match="'best' of heads: choose one of elimination, energy, magnitude, taylor, graph"):
        factors_of(model_of(make_vit), images, {"heads": "best"})


# Which heads go first


@pytest.mark.parametrize("ranking", ["elimination", "energy", "taylor"])
def test_a_head_without_output_weights_goes_first(make_vit: MakeVit, images: Tensor, ranking: str) -> None:
    model = model_of(make_vit)
    with torch.no_grad():
        model.get_parameter("blocks.0.attn.proj.weight")[:, 16:24] = 0
    factors = factors_of(model, images, {"heads": ranking})
    assert order_of(factors)[-1] == 2
    built = factors.build(factors.space.identity().replace({"blocks.0.attn.heads": 3}))
    assert relative_error(built, model, images) < 1e-6


def test_a_copy_of_a_head_costs_nothing_under_elimination(make_vit: MakeVit, images: Tensor) -> None:
    """Heads 0 and 3 compute the same, so either can do the other's work; by its energy alone, neither would go."""
    model = model_of(make_vit)
    with torch.no_grad():
        for part in range(3):
            for name in ("weight", "bias"):
                rows = model.get_parameter(f"blocks.0.attn.qkv.{name}")[32 * part : 32 * part + 32]
                rows[24:] = rows[:8]
        for columns in (slice(0, 8), slice(24, 32)):
            model.get_parameter("blocks.0.attn.proj.weight")[:, columns] *= 3
    keep = {"blocks.0.attn.heads": 3}
    factors = factors_of(model, images, {"heads": "elimination"})
    assert order_of(factors)[-1] in (0, 3)
    error = factors.error(site_of(factors.space, "blocks.0.attn.heads"))
    assert error[3] < 1e-2 * error[2]
    assert relative_error(factors.build(factors.space.identity().replace(keep)), model, images) < 1e-5
    by_energy = factors_of(model, images, {"heads": "energy"})
    assert order_of(by_energy)[-1] in (1, 2)


@pytest.fixture
def samples() -> Tensor:
    """2,000 correlated head outputs, six heads of width 3, centred."""
    generator = torch.Generator().manual_seed(2)
    mix = torch.randn(18, 18, generator=generator, dtype=torch.float64) * torch.logspace(0, -1, 18, dtype=torch.float64)
    x = torch.randn(2000, 18, generator=generator, dtype=torch.float64) @ mix
    return x - x.mean(0)


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(7, 18, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def covariance(x: Tensor) -> Tensor:
    return x.T @ x / len(x)


def residual(x: Tensor, weight: Tensor, heads: list[int]) -> float:
    """Squared error of the best output projection of these heads alone, fitted on the samples."""
    wanted = (x @ weight.T).numpy()
    inputs = x.reshape(len(x), -1, 3)[:, heads].flatten(1).numpy()
    return float(((wanted - inputs @ np.linalg.lstsq(inputs, wanted, rcond=None)[0]) ** 2).sum()) if heads else float("inf")


@pytest.mark.parametrize("seed", range(6))
def test_elimination_equals_brute_force(seed: int) -> None:
    """Always the head goes without which the best refit on the samples loses least; heads of nearly equal worth."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(18, 18, generator=generator, dtype=torch.float64) + 2  # strongly correlated: much to make up for
    samples = torch.randn(2000, 18, generator=generator, dtype=torch.float64) @ mix
    samples = samples - samples.mean(0)
    weight = torch.randn(7, 18, generator=generator, dtype=torch.float64)
    alive, removed = list(range(6)), []
    while len(alive) > 1:
        errors = {head: residual(samples, weight, [other for other in alive if other != head]) for head in alive}
        removed.append(min(errors, key=lambda head: errors[head]))
        alive.remove(removed[-1])
    assert elimination_scores(weight, covariance(samples), 6).argsort().tolist() == [*removed, *alive]


@pytest.mark.parametrize("kept", [[0], [17, 3, 4], [0, 1, 2, 9, 10, 11, 5]])
def test_subset_weight_is_least_squares(samples: Tensor, weight: Tensor, kept: list[int]) -> None:
    factors = prefix_factors(weight, covariance(samples))
    ridge = np.sqrt(len(samples) * DAMPING * float(covariance(samples).diagonal().mean())) * np.eye(18)
    rows = np.concatenate([samples.numpy(), ridge])  # damping is ridge regression: 18 more samples along the axes
    expected = np.linalg.lstsq(rows[:, kept], rows @ weight.numpy().T, rcond=None)[0].T
    found = subset_weight(factors.projected, factors.triangle, torch.tensor(kept))
    assert np.allclose(found.numpy(), expected, atol=1e-8)


def test_a_subset_that_is_a_prefix_is_the_prefix(samples: Tensor, weight: Tensor) -> None:
    factors = prefix_factors(weight, covariance(samples))
    found = subset_weight(factors.projected, factors.triangle, torch.arange(7))
    assert torch.allclose(found, prefix_weight(factors.projected, factors.triangle, 7), atol=1e-9)


def test_energy_is_the_mean_square_of_what_a_head_brings(samples: Tensor, weight: Tensor) -> None:
    found = energy_scores(weight, covariance(samples), 6)
    for head in range(6):
        columns = slice(3 * head, 3 * head + 3)
        assert float(found[head]) == pytest.approx(float((samples[:, columns] @ weight[:, columns].T).square().sum(-1).mean()))


def test_magnitude_and_taylor_by_hand() -> None:
    """Two heads of width 1 in a model of width 2: queries (1, 2), keys (3, 0), values (0, 1), output columns (2, 0), (1, 1)."""
    qkv = torch.tensor([[1.0, 0], [0, 2], [3, 0], [0, 0], [0, 0], [1, 0]])
    output = torch.tensor([[2.0, 1], [0, 1]])
    assert magnitude_scores(qkv, output, 2).tolist() == [1 + 9 + 0 + 4, 4 + 0 + 1 + 2]
    assert taylor_scores(torch.tensor([1.0, 2, 0, 4]), 2).tolist() == [3, 4]
    assert taylor_scores(torch.tensor([5.0, 6]), 2).tolist() == [5, 6]


def test_saliency_is_what_removing_a_head_does_to_first_order(make_vit: MakeVit, images: Tensor) -> None:
    """Shrinking a head's output by a small share moves the logits in proportion: heads of tripled output weights stand out."""
    model = model_of(make_vit)
    with torch.no_grad():
        proj = model.get_parameter("blocks.1.attn.proj.weight")
        proj.normal_(std=0.01, generator=torch.Generator().manual_seed(0))
        for rank, head in enumerate((2, 0, 3, 1)):
            proj[:, 8 * head : 8 * head + 8] *= 4.0**-rank
    assert order_of(factors_of(model, images, {"heads": "taylor"}), block=1) == [2, 0, 3, 1]
