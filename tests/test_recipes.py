"""Recipes on the real digits with an untrained model: all keep the budget, pay the same steps, and leave the model alone."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_factors import KINDS
from torch import Tensor, nn

from objectives.admm import Structure, alternate, rank_heads
from objectives.cost import Cost
from objectives.count import torch_macs
from objectives.finetune import FinetuneConfig
from objectives.gates import GlobalThreshold, train_gates
from objectives.losparse import LowRankPlusRows, _rebuilt, cubic, decompose, keep_rows
from objectives.objective import Evaluator, Objective
from objectives.recipes import RECIPES, check_reach, evaluate_recipe, make_cut, open_workbench, recipe_of
from objectives.splits import DataConfig
from objectives.workbench import Workbench
from spaces.errors import AllocationError, CompressionError, ConfigError
from spaces.factors import Factors, fingerprint
from spaces.files import save_tensors
from spaces.models import ModelConfig, create_model
from spaces.sites import Site
from spaces.vit import resize

STEPS = 5
SIZE = (1, 8, 8)
TRAINED = [name for name, recipe in RECIPES.items() if recipe.trains]
SLICED = [name for name in RECIPES if name not in TRAINED]
MODEL = ModelConfig(
    model="vit_tiny_patch16_224",
    num_classes=10,
    crop_pct=1.0,
    mean=(0.3,),
    std=(0.37,),
    model_kwargs={"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 4},
)


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    """Sizes in multiples of 1, so that every budget can be met; weights large enough that heads differ."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    model = create_model(MODEL)
    with torch.no_grad():
        for parameter in model.blocks.parameters():  # type: ignore[union-attr]
            if parameter.ndim == 2:
                parameter.normal_(std=0.15)
    save_tensors(folder / "dense.safetensors", model.state_dict())
    return Evaluator(
        Objective(
            model=replace(MODEL, checkpoint=str(folder / "dense.safetensors")),
            data=DataConfig(dataset="digits", batch_size=16, hflip=0.0, calibration_size=64, search_size=64),
            finetune=FinetuneConfig(steps=STEPS, recipe_share=0.5),
            multiple=1,
            factors=folder / "one" / "factors",
            device="cpu",
        )
    )


@pytest.fixture
def steps(evaluator: Evaluator) -> Iterator[Callable[[int], Evaluator]]:
    """The same evaluator with another number of steps."""
    before = evaluator.objective

    def change(count: int) -> Evaluator:
        evaluator.objective = replace(before, finetune=FinetuneConfig(steps=count, recipe_share=0.5))
        return evaluator

    yield change
    evaluator.objective = before


@pytest.fixture
def bench(evaluator: Evaluator) -> Callable[[str], Workbench]:
    return lambda name: open_workbench(evaluator, name, limits_of(evaluator, macs=0.5), seed=0)


@pytest.fixture(scope="module")
def images(evaluator: Evaluator) -> Tensor:
    return next(evaluator.data.evaluation("search"))[0]


def limits_of(evaluator: Evaluator, **shares: float) -> dict[Cost, float]:
    return {cost: share * evaluator.costs.dense[cost] for cost, share in shares.items()}  # type: ignore[index,misc]


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def sites_of(bench: Workbench, *kinds: str) -> list[Site]:
    return [site for site in bench.space.sites if site.kind in kinds]


# What every recipe keeps to


@pytest.mark.parametrize("shares", [{"macs": 0.5}, {"params": 0.5}, {"macs": 0.6, "params": 0.5}], ids=str)
@pytest.mark.parametrize("name", RECIPES)
def test_the_budget_is_met_and_never_exceeded(evaluator: Evaluator, name: str, shares: dict[str, float]) -> None:
    """Counted on the model itself; and the allocation is all that is needed to load its weights."""
    mark = fingerprint(evaluator.model)
    limits = limits_of(evaluator, **shares)
    bench, cut = make_cut(evaluator, name, limits, seed=0)
    counts = {"macs": torch_macs(cut.model, SIZE), "params": parameters(cut.model)}
    assert counts == bench.costs.costs(cut.allocation)
    assert 0.99 <= max(counts[cost] / limit for cost, limit in limits.items()) <= 1.0
    bench.space.validate(cut.allocation)
    empty = copy.deepcopy(evaluator.model)
    resize(empty, bench.space, cut.allocation)
    empty.load_state_dict(cut.model.state_dict(), strict=True)
    assert fingerprint(evaluator.model) == mark
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in cut.model.modules())
    assert all(parameter.requires_grad for parameter in cut.model.parameters())


@pytest.mark.parametrize("name", RECIPES)
def test_steps_are_counted_and_numbered(evaluator: Evaluator, name: str) -> None:
    """5 steps in all; a recipe that trains takes two of them, so the learning rate warms up a second time."""
    mark = fingerprint(evaluator.model), fingerprint(evaluator.teacher)
    seen: list[int] = []
    limits = limits_of(evaluator, macs=0.5)
    score, allocation = evaluate_recipe(evaluator, name, limits, 0, lambda step: seen.append(step.step))
    assert score.steps == STEPS
    assert seen == [1, 2, 3, 4, 5]
    assert open_workbench(evaluator, name, limits, 0).steps == (2 if name in TRAINED else 0)
    assert score.macs <= limits["macs"]
    assert score.params == open_workbench(evaluator, name, limits, 0).costs.costs(allocation)["params"]
    assert (fingerprint(evaluator.model), fingerprint(evaluator.teacher)) == mark
    assert not evaluator.model.training


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("name", RECIPES)
def test_what_is_not_refused_at_once_runs(steps: Callable[[int], Evaluator], name: str, count: int) -> None:
    """`--steps 0` measures models as they are built, and half of one step is none."""
    evaluator, seen = steps(count), list[int]()
    limits = limits_of(evaluator, macs=0.5)
    try:
        check_reach(evaluator, name, limits)
    except CompressionError:
        return
    score, _ = evaluate_recipe(evaluator, name, limits, 0, lambda step: seen.append(step.step))
    assert score.steps == count
    assert score.macs <= limits["macs"]
    assert seen == list(range(1, count + 1))


@pytest.mark.parametrize("name", RECIPES)
def test_the_seed_decides(evaluator: Evaluator, tmp_path: Path, name: str) -> None:
    for index, seed in enumerate((0, 0, 1)):
        evaluate_recipe(evaluator, name, limits_of(evaluator, macs=0.5), seed, weights=tmp_path / str(index))
        torch.rand(index + 1)  # whatever others draw in between
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes() != (tmp_path / "2").read_bytes()


@pytest.mark.parametrize("name", RECIPES)
def test_a_budget_out_of_reach_names_the_recipe(evaluator: Evaluator, name: str) -> None:
    check_reach(evaluator, name, limits_of(evaluator, macs=0.5))
    for shares in ({"macs": 0.01}, {"params": 0.01}, {"macs": 0.9, "params": 0.01}):
        with pytest.raises(AllocationError, match=rf"recipe '{name}' cannot keep this budget: .* keeps \d+\.\d% of"):
            check_reach(evaluator, name, limits_of(evaluator, **shares))


def test_unknown_recipe_lists_the_known(evaluator: Evaluator) -> None:
    with pytest.raises(ConfigError, match=r"unknown recipe 'svd': choose one of kumar-hybrid, .*vtp, gohsp, losparse"):
        recipe_of("svd")
    with pytest.raises(ConfigError, match="unknown recipe"):
        evaluate_recipe(evaluator, "svd", {}, 0)


@pytest.mark.parametrize("name", SLICED)
def test_a_budget_that_is_no_limit_keeps_the_model(evaluator: Evaluator, images: Tensor, name: str) -> None:
    bench, cut = make_cut(evaluator, name, limits_of(evaluator, macs=1.0), seed=0)
    assert cut.allocation == bench.space.identity()
    with torch.no_grad():
        assert torch.equal(cut.model(images), evaluator.model(images))


@pytest.mark.parametrize("kind", ["q/k norm", "gated FFN", "rotary", "no qkv bias"])
def test_other_architectures_keep_the_budget(evaluator: Evaluator, tmp_path: Path, kind: str) -> None:
    """Each lacks sites that a recipe would move: query/key widths, heads, or inputs of the FFN."""
    options = dict(KINDS[kind])
    config = replace(MODEL, model=options.pop("name", MODEL.model), model_kwargs={**MODEL.model_kwargs, **options})
    other = Evaluator(replace(evaluator.objective, model=config, factors=tmp_path / "run" / "factors"))
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
    on_gpu = Evaluator(replace(evaluator.objective, device="cuda"))
    score, _ = evaluate_recipe(on_gpu, name, limits_of(evaluator, macs=0.5), seed=0)
    assert score.macs <= 0.5 * evaluator.costs.dense["macs"]


# Controls


def test_energy_keeps_the_same_share_in_every_layer(evaluator: Evaluator) -> None:
    """Some share of the squared singular values is kept by all layers, and by none with two ranks less: one is rounding,
    one what was left of the budget."""
    limits = limits_of(evaluator, macs=0.5)
    bench, cut = make_cut(evaluator, "svd-energy", limits, seed=0)
    kept, kept_less = [], []
    for site in bench.sites:
        rank = cut.allocation[site.name]
        assert rank < site.dense
        energy = np.linalg.svd(bench.dense.get_submodule(site.name).weight.detach().double().numpy())[1] ** 2
        kept.append(energy[:rank].sum() / energy.sum())
        kept_less.append(energy[: rank - 2].sum() / energy.sum())
    assert len(kept) == 8
    assert max(kept_less) < min(kept)


def test_magnitude_is_plain_slicing(evaluator: Evaluator, images: Tensor) -> None:
    """Its FFN is the dense one with zero output weights of the other neurons."""
    limits = limits_of(evaluator, macs=0.5)
    _, cut = make_cut(evaluator, "magnitude", limits, seed=0)
    size = cut.allocation["blocks.0.mlp.hidden"]
    ffn, dense = (model.get_submodule("blocks.0.mlp") for model in (cut.model, copy.deepcopy(evaluator.model)))
    into, out = (dense.get_parameter(f"{name}.weight") for name in ("fc1", "fc2"))
    scores = (into.square().sum(1) * out.square().sum(0)).tolist()
    gone = sorted(range(len(scores)), key=scores.__getitem__)[: len(scores) - size]
    with torch.no_grad():
        out[:, gone] = 0
        x = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(ffn(x), dense(x), atol=1e-5)


@pytest.mark.parametrize("name", ["kumar-hybrid", "kumar-hybrid-whitened"])
def test_the_hybrid_cuts_attention_more_than_the_ffn(evaluator: Evaluator, name: str) -> None:
    bench, cut = make_cut(evaluator, name, limits_of(evaluator, macs=0.5), seed=0)
    shares = {
        kind: [site.share(cut.allocation[site.name]) for site in sites_of(bench, kind)] for kind in ("rank", "ffn_hidden")
    }
    assert max(shares["rank"]) < sum(shares["ffn_hidden"]) / len(shares["ffn_hidden"])
    assert max(shares["rank"]) - min(shares["rank"]) < 0.06, "the same share in all layers, up to a rank and the filling"


# VTP


def test_a_gate_that_the_loss_does_not_see_falls(steps: Callable[[int], Evaluator]) -> None:
    """Neurons that are off for every image (GELU of -20) have a gradient from the penalty alone."""
    evaluator, off = steps(40), slice(0, 20)
    bench = open_workbench(evaluator, "vtp", limits_of(evaluator, macs=0.5), seed=0)
    bench.dense = copy.deepcopy(evaluator.model)
    with torch.no_grad():
        bench.dense.get_parameter("blocks.0.mlp.fc1.weight")[off] = 0
        bench.dense.get_parameter("blocks.0.mlp.fc1.bias")[off] = -20
    hidden = [site for site in bench.space.sites if site.part == "hidden"]
    _, gates = train_gates(bench, hidden)
    found = gates["blocks.0.mlp.hidden"]
    assert float(found[off].max()) < 0.2, "over the run a gate can travel from 1 to 0"
    assert float(found[off].max()) < float(found[20:].quantile(0.05))
    cut = GlobalThreshold(gates).share("blocks.0.mlp.hidden", 1 - 20 / 256)
    assert cut == pytest.approx(1 - 20 / 128), "they are the first to go"


def test_folding_the_gates_changes_nothing(evaluator: Evaluator, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = open_workbench(evaluator, "vtp", limits_of(evaluator, macs=0.5), seed=0)
    genuine, seen = bench.train, list[Tensor]()

    def train(model: nn.Module, penalty: Callable[[], Tensor] | None = None) -> Iterator[object]:
        yield from genuine(model, penalty)
        with torch.no_grad():
            seen.append(model.eval()(images))

    monkeypatch.setattr(bench, "train", train)
    model, gates = train_gates(bench, [site for site in bench.space.sites if site.part in ("inputs", "vo", "hidden")])
    assert len(gates) == 2 * 4
    assert float(torch.cat(list(gates.values())).std()) > 0.01, "gates have moved apart"
    with torch.no_grad():
        assert torch.allclose(model(images), seen[0], atol=1e-5)
        assert not torch.allclose(model(images), evaluator.model(images), atol=1e-3)


def test_one_threshold_for_all_gates_by_hand() -> None:
    """Gates of 1..6: the three largest are 6, 5 and 4; a keeps one of two, b two of four."""
    threshold = GlobalThreshold({"a": torch.tensor([6.0, 1.0]), "b": torch.tensor([2.0, 5.0, 3.0, 4.0])})
    assert [threshold.share("a", 1 / 2), threshold.share("b", 1 / 2)] == [1 / 2, 2 / 4]
    assert [threshold.share("a", 1.0), threshold.share("b", 1.0)] == [1, 1]
    assert [threshold.share("a", 2 / 6), threshold.share("b", 2 / 6)] == [1 / 2, 1 / 4]
    assert [threshold.share("a", 5 / 6), threshold.share("b", 5 / 6)] == [1 / 2, 1]


def test_the_threshold_keeps_what_it_says_and_more_of_everything_with_more() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = {"a": (30, 1.0), "b": (50, 2.0), "c": (20, 0.5)}
    gates = {name: torch.rand(size, generator=generator) * scale for name, (size, scale) in sizes.items()}
    threshold, before = GlobalThreshold(gates), dict.fromkeys(gates, 0.0)
    for kept in np.linspace(0.01, 1, 100):
        shares = {name: threshold.share(name, float(kept)) for name in gates}
        assert sum(shares[name] * len(gate) for name, gate in gates.items()) == pytest.approx(100 * kept, abs=1e-3)
        assert all(shares[name] >= before[name] for name in gates)
        before = shares


def test_equal_gates_can_all_go() -> None:
    """After no step, or where no gate has moved, a site must still be able to keep few of its channels."""
    threshold = GlobalThreshold({"a": torch.ones(8), "b": torch.ones(8)})
    for kept in (0.25, 0.5):
        assert threshold.share("a", kept) + threshold.share("b", kept) == pytest.approx(2 * kept)


# GOHSP


def structure_of(bench: Workbench) -> Structure:
    allocation = bench.space.identity().replace(
        {
            **{site.name: 2 for site in sites_of(bench, "heads")},
            **{site.name: 5 for site in sites_of(bench, "query_key")},
            **{site.name: 6 for site in sites_of(bench, "value_output")},
            **{site.name: 50 for site in sites_of(bench, "ffn_hidden")},
        }
    )
    return Structure(bench.copy(), bench.space, allocation, rank_heads(bench))


def test_the_weights_approach_their_structure(steps: Callable[[int], Evaluator]) -> None:
    evaluator = steps(80)
    bench = open_workbench(evaluator, "gohsp", limits_of(evaluator, macs=0.5), seed=0)
    structure = structure_of(bench)
    residuals = alternate(bench, structure)
    assert residuals[0] > 0.3
    assert residuals[-1] < 0.5 * residuals[0]
    assert residuals[-1] == min(residuals)


def test_the_residual_is_what_the_structure_has_no_place_for(bench: Callable[[str], Workbench]) -> None:
    """Weights of one size everywhere: with every neuron kept, 2 of 4 heads, 5 of 8 and 6 of 8 channels of those."""
    structure = structure_of(bench("gohsp"))
    with torch.no_grad():
        for name, weight in structure._weights.items():
            weight.fill_(0.0 if "mlp" in name else 1.0)
    rows = 2 * 32 + 32  # queries and keys, values; 32 inputs each; and 32 x 32 output weights
    whole = rows * 32 + 32 * 32
    kept = (2 * 2 * 5 + 2 * 6) * 32 + 2 * 6 * 32
    assert structure.residual() == pytest.approx(((whole - kept) / whole) ** 0.5, rel=1e-6)


def test_removal_of_what_was_driven_to_zero_changes_nothing(bench: Callable[[str], Workbench], images: Tensor) -> None:
    """Weights put on their projection: as many groups as are allowed, the heads of the best rank, and the same outputs."""
    structure = structure_of(found := bench("gohsp"))
    with torch.no_grad():
        for name, weight in structure._weights.items():
            weight.copy_(structure._allowed[name])
    assert structure.residual() == 0
    model, ranking = structure.model.eval(), rank_heads(found)
    for block in (0, 1):
        output = model.get_parameter(f"blocks.{block}.attn.proj.weight").detach().reshape(32, 4, 8)
        alive = output.abs().sum((0, 2)).nonzero().flatten().tolist()
        scores = ranking[f"blocks.{block}.attn.heads"].tolist()
        assert alive == sorted(sorted(range(4), key=scores.__getitem__)[2:])
        assert int((output.abs().sum(0) > 0).sum()) == 2 * 6
        queries = model.get_parameter(f"blocks.{block}.attn.qkv.weight").detach()[:32]
        assert int((queries.abs().sum(1) > 0).sum()) == 2 * 5
        assert int((model.get_parameter(f"blocks.{block}.mlp.fc2.weight").detach().abs().sum(0) > 0).sum()) == 50
    built = Factors.compute(model, found.space, [], scores=structure.scores()).build(structure.allocation)
    with torch.no_grad():
        assert torch.allclose(built(images), model(images), atol=1e-5)


# LoSparse


def test_the_decomposition_starts_exact(bench: Callable[[str], Workbench], images: Tensor) -> None:
    model = (found := bench("losparse")).copy().eval()
    layers = decompose(model, found.smallest(), found)
    assert len(layers) == 8
    with torch.no_grad():
        for name, layer in layers.items():
            dense = found.dense.get_submodule(name.removesuffix("_rows")).weight
            assert torch.allclose(layer.whole(), dense, atol=1e-6)  # type: ignore[arg-type]
            assert layer.up.shape[1] == 1
            sigma = torch.linalg.svdvals(dense.double())  # type: ignore[arg-type]
            assert float(layer.rows.square().sum()) == pytest.approx(float(sigma[1:].square().sum()), rel=1e-4)
        assert torch.allclose(model(images), found.dense(images), atol=1e-5)


def test_the_schedule_is_cubic() -> None:
    """Halfway an eighth of what goes is left: 0.2 + 0.8 / 8."""
    assert cubic(0.0, 0.2) == 1
    assert cubic(0.5, 0.2) == pytest.approx(0.3)
    assert cubic(1.0, 0.2) == cubic(7.0, 0.2) == pytest.approx(0.2)
    shares = [cubic(progress, 0.2) for progress in np.linspace(0, 1, 50)]
    assert shares == sorted(shares, reverse=True)


def test_importance_is_smoothed_by_hand() -> None:
    """Rows of S of (1, 2) and (3, 4) for W of rank 1 that is zero: dL/dW is x in every row, so |w g| is |S x| by entry."""
    layer = LowRankPlusRows(torch.zeros(2, 2), None, rank=1)
    with torch.no_grad():
        layer.rows.copy_(torch.tensor([[1.0, 2.0], [3.0, -4.0]]))
    layer(torch.tensor([[10.0, 1.0]])).sum().backward()
    assert layer.importance.tolist() == pytest.approx([0.15 * (10 + 2) / 2, 0.15 * (30 + 4) / 2])
    layer.zero_grad()
    layer(torch.tensor([[0.0, 1.0]])).sum().backward()
    assert layer.importance.tolist() == pytest.approx([0.85 * 0.9 + 0.15 * 1, 0.85 * 2.55 + 0.15 * 2])


def test_importance_moves_with_its_layer() -> None:
    """A model trained on a GPU is rebuilt on the CPU: what ranks the rows must come along."""
    layer = LowRankPlusRows(torch.randn(4, 3), None, rank=1).to("meta")
    assert layer.rows.device.type == layer.importance.device.type == "meta"


def test_exactly_the_other_rows_become_zero() -> None:
    layers = {name: LowRankPlusRows(torch.randn(rows, 4), None, rank=1) for name, rows in (("a", 4), ("b", 6))}
    layers["a"].importance = torch.tensor([0.9, 0.1, 0.5, 0.05])
    layers["b"].importance = torch.tensor([0.2, 0.8, 0.3, 0.7, 0.01, 0.02])
    before = {name: layer.rows.detach().clone() for name, layer in layers.items()}
    keep_rows(layers, 1.0)
    assert all(torch.equal(layer.rows, before[name]) for name, layer in layers.items())
    keep_rows(layers, 0.4)  # four of ten: 0.9, 0.8, 0.7, 0.5
    for name, kept in (("a", [0, 2]), ("b", [1, 3])):
        zero = [row for row in range(len(before[name])) if row not in kept]
        assert torch.equal(layers[name].rows[kept], before[name][kept])
        assert not layers[name].rows[zero].any()


def test_the_small_layers_compute_what_low_rank_and_rows_did(bench: Callable[[str], Workbench], images: Tensor) -> None:
    """Everything moved by noise, as if trained; from 3 rows to all of them whole, a layer of one rank and one of many."""
    found, generator = bench("losparse"), torch.Generator().manual_seed(0)
    ranks, rows = sites_of(found, "rank"), sites_of(found, "rows")
    allocation = found.space.identity().replace(
        {
            **{site.name: site.choices[3 * index % (len(site.choices) - 1)] for index, site in enumerate(ranks)},
            **{site.name: site.choices[(2 + 5 * index) % (len(site.choices) - 1)] for index, site in enumerate(rows[1:])},
        }
    )
    model = found.copy().eval()
    layers = decompose(model, allocation, found)
    with torch.no_grad():
        for name, layer in layers.items():
            layer.importance = torch.rand(len(layer.importance), generator=generator)
            for parameter in layer.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
            scores = layer.importance.tolist()
            gone = sorted(range(len(scores)), key=scores.__getitem__)[: len(scores) - allocation[name]]
            layer.rows[gone] = 0
        wanted = model(images)
        built = _rebuilt(found, model, layers, allocation)
        assert parameters(built) == found.costs.costs(allocation)["params"]
        assert torch.allclose(built(images), wanted, atol=1e-5)
        assert not torch.allclose(wanted, found.dense(images), atol=1e-3)


def test_the_cut_takes_rows_that_training_gave_up(steps: Callable[[int], Evaluator], monkeypatch: pytest.MonkeyPatch) -> None:
    """The schedule ends where the allocation is: the cut itself takes hardly a row that training still used."""
    from objectives import losparse

    evaluator, lost = steps(40), list[float]()
    genuine = losparse._rebuilt

    def rebuilt(bench: Workbench, trained: nn.Module, layers: dict[str, LowRankPlusRows], allocation: object) -> nn.Module:
        for name, layer in layers.items():
            order = layer.importance.argsort(descending=True, stable=True)
            whole = layer.rows.detach()
            gone = whole[order[allocation[name] :]]  # type: ignore[index]
            lost.append(float(gone.square().sum() / whole.square().sum().clamp_min(1e-12)))
        return genuine(bench, trained, layers, allocation)  # type: ignore[arg-type]

    monkeypatch.setattr(losparse, "_rebuilt", rebuilt)
    make_cut(evaluator, "losparse", limits_of(evaluator, macs=0.5), seed=0)
    assert len(lost) == 8
    assert sum(lost) / len(lost) < 0.1
