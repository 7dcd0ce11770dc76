"""Recipes on the real digits with an untrained model: all keep the budget, pay the same steps, and leave the model alone."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from local_digits import MODEL, SIZE, limits_of, sites_of
from local_vits import KINDS, parameters
from torch import Tensor

from objectives.cost.tracing import torch_macs
from objectives.dense_model import load_dense
from objectives.evaluator import Evaluator
from objectives.recipes.registry import RECIPES, check_reach, evaluate_recipe, make_cut, open_workbench, recipe_of
from objectives.runtime.progress import Step
from spaces.errors import AllocationError, CompressionError, ConfigError
from spaces.factors import fingerprint
from spaces.operators.linears import linear_of
from spaces.vit import resize

TRAINED = [name for name, recipe in RECIPES.items() if recipe.trains]
SLICED = [name for name in RECIPES if name not in TRAINED]


# What every recipe keeps to


@pytest.mark.parametrize("shares", [{"macs": 0.5}, {"params": 0.5}, {"macs": 0.6, "params": 0.5}], ids=str)
@pytest.mark.parametrize("name", RECIPES)
def test_the_budget_is_met_and_never_exceeded(evaluator: Evaluator, name: str, shares: dict[str, float]) -> None:
    """Counted on the model itself; and the allocation is all that is needed to load its weights."""
    mark = fingerprint(evaluator.dense.model)
    limits = limits_of(evaluator.dense, **shares)
    bench, cut = make_cut(evaluator.dense, name, limits, seed=0)
    counts = {"macs": torch_macs(cut.model, SIZE), "params": parameters(cut.model)}
    assert counts == bench.costs.costs(cut.allocation)
    assert 0.99 <= max(counts[cost] / limit for cost, limit in limits.items()) <= 1.0
    bench.space.validate(cut.allocation)
    empty = copy.deepcopy(evaluator.dense.model)
    resize(empty, bench.space, cut.allocation)
    empty.load_state_dict(cut.model.state_dict(), strict=True)
    assert fingerprint(evaluator.dense.model) == mark
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in cut.model.modules())
    assert all(parameter.requires_grad for parameter in cut.model.parameters())


@pytest.mark.parametrize("name", RECIPES)
def test_steps_are_counted_and_numbered(evaluator: Evaluator, name: str) -> None:
    """5 steps in all; a recipe that trains takes two of them, so the learning rate warms up a second time."""
    mark = fingerprint(evaluator.dense.model), fingerprint(evaluator.dense.teacher)
    seen: list[int] = []
    limits = limits_of(evaluator.dense, macs=0.5)
    score, allocation = evaluate_recipe(evaluator, name, limits, 0, lambda step: seen.append(step.step))
    assert score.steps == 5
    assert seen == [1, 2, 3, 4, 5]
    assert open_workbench(evaluator.dense, name, limits, 0).steps == (2 if name in TRAINED else 0)
    assert score.costs["macs"] <= limits["macs"]
    assert score.costs["params"] == open_workbench(evaluator.dense, name, limits, 0).costs.costs(allocation)["params"]
    assert (fingerprint(evaluator.dense.model), fingerprint(evaluator.dense.teacher)) == mark
    assert not evaluator.dense.model.training


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("name", RECIPES)
def test_what_is_not_refused_at_once_runs(steps: Callable[[int], Evaluator], name: str, count: int) -> None:
    """`--steps 0` measures models as they are built, and half of one step is none."""
    evaluator, seen = steps(count), list[int]()
    limits = limits_of(evaluator.dense, macs=0.5)
    try:
        check_reach(evaluator.dense, name, limits)
    except CompressionError:
        return
    score, _ = evaluate_recipe(evaluator, name, limits, 0, lambda step: seen.append(step.step))
    assert score.steps == count
    assert score.costs["macs"] <= limits["macs"]
    assert seen == list(range(1, count + 1))


@pytest.mark.parametrize("name", RECIPES)
def test_the_seed_decides(evaluator: Evaluator, tmp_path: Path, name: str) -> None:
    steps: list[list[Step]] = [[], [], []]
    for index, seed in enumerate((0, 0, 1)):
        limits = limits_of(evaluator.dense, macs=0.5)
        evaluate_recipe(evaluator, name, limits, seed, steps[index].append, weights=tmp_path / str(index))
        torch.rand(index + 1)  # whatever others draw in between
    assert steps[0] == steps[1] != steps[2]
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes(), "those as built, or trained"


@pytest.mark.parametrize("name", RECIPES)
def test_a_budget_out_of_reach_names_the_recipe(evaluator: Evaluator, name: str) -> None:
    check_reach(evaluator.dense, name, limits_of(evaluator.dense, macs=0.5))
    for shares in ({"macs": 0.01}, {"params": 0.01}, {"macs": 0.9, "params": 0.01}):
        with pytest.raises(AllocationError, match=rf"recipe '{name}' cannot keep this budget: .* keeps \d+\.\d% of"):
            check_reach(evaluator.dense, name, limits_of(evaluator.dense, **shares))


def test_unknown_recipe_lists_the_known(evaluator: Evaluator) -> None:
    with pytest.raises(ConfigError, match=r"unknown recipe 'svd': choose one of kumar-hybrid, .*vtp, gohsp, losparse"):
        recipe_of("svd")
    with pytest.raises(ConfigError, match="unknown recipe"):
        evaluate_recipe(evaluator, "svd", {}, 0)


@pytest.mark.parametrize("name", SLICED)
def test_a_budget_that_is_no_limit_keeps_the_model(evaluator: Evaluator, digits: Tensor, name: str) -> None:
    bench, cut = make_cut(evaluator.dense, name, limits_of(evaluator.dense, macs=1.0), seed=0)
    assert cut.allocation == bench.space.lossless()
    with torch.no_grad():
        assert torch.allclose(cut.model(digits), evaluator.dense.model(digits), atol=1e-5)


@pytest.mark.parametrize("kind", ["q/k norm", "gated FFN", "rotary", "no qkv bias"])
def test_other_architectures_keep_the_budget(evaluator: Evaluator, tmp_path: Path, kind: str) -> None:
    """Each lacks sites that a recipe would move: query/key widths, heads, or inputs of the FFN."""
    options = dict(KINDS[kind])
    config = replace(MODEL, model=options.pop("name", MODEL.model), model_kwargs={**MODEL.model_kwargs, **options})
    other = load_dense(replace(evaluator.dense.objective, model=config, factors=tmp_path / "run" / "factors"))
    limits = limits_of(other, macs=0.6)
    for name in TRAINED:
        bench, cut = make_cut(other, name, limits, seed=0)
        counts = {"macs": torch_macs(cut.model, SIZE), "params": parameters(cut.model)}
        assert counts == bench.costs.costs(cut.allocation), name
        assert 0.97 * limits["macs"] <= counts["macs"] <= limits["macs"], name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_on_a_gpu(evaluator: Evaluator, name: str) -> None:
    on_gpu = Evaluator(load_dense(replace(evaluator.dense.objective, device="cuda")))
    score, _ = evaluate_recipe(on_gpu, name, limits_of(evaluator.dense, macs=0.5), seed=0)
    assert score.costs["macs"] <= 0.5 * evaluator.dense.costs.dense["macs"]


# Controls


def test_energy_keeps_the_same_share_in_every_layer(evaluator: Evaluator) -> None:
    """Some share of the squared singular values is kept by all layers, and by none with two ranks less: one is rounding,
    one what was left of the budget."""
    limits = limits_of(evaluator.dense, macs=0.5)
    bench, cut = make_cut(evaluator.dense, "svd-energy", limits, seed=0)
    kept, kept_less = [], []
    for site in bench.sites:
        rank = cut.allocation[site.name]
        assert rank < site.dense
        energy = np.linalg.svd(linear_of(bench.model, site.name)[0].detach().double().numpy())[1] ** 2
        kept.append(energy[:rank].sum() / energy.sum())
        kept_less.append(energy[: rank - 2].sum() / energy.sum())
    assert len(kept) == 8
    assert max(kept_less) < min(kept)


def test_magnitude_is_plain_slicing(evaluator: Evaluator, digits: Tensor) -> None:
    """Its FFN is the dense one with zero output weights of the other neurons."""
    limits = limits_of(evaluator.dense, macs=0.5)
    _, cut = make_cut(evaluator.dense, "magnitude", limits, seed=0)
    size = cut.allocation["blocks.0.mlp.hidden"]
    ffn, dense = (model.get_submodule("blocks.0.mlp") for model in (cut.model, copy.deepcopy(evaluator.dense.model)))
    into, out = (dense.get_parameter(f"{name}.weight") for name in ("fc1", "fc2"))
    scores = (into.square().sum(1) * out.square().sum(0)).tolist()
    gone = sorted(range(len(scores)), key=scores.__getitem__)[: len(scores) - size]
    with torch.no_grad():
        out[:, gone] = 0
        x = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(ffn(x), dense(x), atol=1e-5)


@pytest.mark.parametrize("name", ["kumar-hybrid", "kumar-hybrid-whitened"])
def test_the_hybrid_cuts_attention_more_than_the_ffn(evaluator: Evaluator, name: str) -> None:
    bench, cut = make_cut(evaluator.dense, name, limits_of(evaluator.dense, macs=0.5), seed=0)
    shares = {
        kind: [site.share(cut.allocation[site.name]) for site in sites_of(bench, kind)] for kind in ("rank", "ffn_hidden")
    }
    assert max(shares["rank"]) < sum(shares["ffn_hidden"]) / len(shares["ffn_hidden"])
    assert max(shares["rank"]) - min(shares["rank"]) <= 64 / 1024, "the same share in all layers, up to a rank of the smallest"
