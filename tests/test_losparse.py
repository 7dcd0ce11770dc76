"""LoSparse: an exact start, the schedule and the importance of rows, and small layers that compute the same."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from local_digits import limits_of, sites_of
from local_vits import parameters
from torch import Tensor, nn

from objectives.evaluator import Evaluator
from objectives.recipes import losparse
from objectives.recipes.losparse import LowRankPlusRows, cubic, decompose, keep_rows, rebuild
from objectives.recipes.registry import make_cut
from objectives.recipes.workbench import Workbench


def test_the_decomposition_starts_exact(bench: Callable[[str], Workbench], digits: Tensor) -> None:
    model = (found := bench("losparse")).copy().eval()
    layers = decompose(model, found.smallest(), found)
    assert len(layers) == 8
    with torch.no_grad():
        for name, layer in layers.items():
            dense = found.model.get_submodule(name.removesuffix("_rows")).weight
            assert torch.allclose(layer.whole(), dense, atol=1e-6)  # type: ignore[arg-type]
            assert layer.up.shape[1] == 1
            sigma = torch.linalg.svdvals(dense.double())
            assert float(layer.rows.square().sum()) == pytest.approx(float(sigma[1:].square().sum()), rel=1e-4)
        assert torch.allclose(model(digits), found.model(digits), atol=1e-5)


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


def test_the_small_layers_compute_what_low_rank_and_rows_did(bench: Callable[[str], Workbench], digits: Tensor) -> None:
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
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
            scores = layer.importance.tolist()
            gone = sorted(range(len(scores)), key=scores.__getitem__)[: len(scores) - allocation[name]]
            layer.rows[gone] = 0
        wanted = model(digits)
        built = rebuild(found, model, layers, allocation)
        assert parameters(built) == found.costs.costs(allocation)["params"]
        assert torch.allclose(built(digits), wanted, atol=1e-5)
        assert not torch.allclose(wanted, found.model(digits), atol=1e-3)


def test_the_cut_takes_rows_that_training_gave_up(steps: Callable[[int], Evaluator], monkeypatch: pytest.MonkeyPatch) -> None:
    """The schedule ends where the allocation is: the cut itself takes hardly a row that training still used."""
    evaluator, lost = steps(40), list[float]()
    genuine = losparse.rebuild

    def rebuilt(bench: Workbench, trained: nn.Module, layers: dict[str, LowRankPlusRows], allocation: object) -> nn.Module:
        for name, layer in layers.items():
            order = layer.importance.argsort(descending=True, stable=True)
            whole = layer.rows.detach()
            gone = whole[order[allocation[name] :]]  # type: ignore[index]
            lost.append(float(gone.square().sum() / whole.square().sum().clamp_min(1e-12)))
        return genuine(bench, trained, layers, allocation)  # type: ignore[arg-type]

    monkeypatch.setattr(losparse, "rebuild", rebuilt)
    make_cut(evaluator.dense, "losparse", limits_of(evaluator.dense, macs=0.5), seed=0)
    assert len(lost) == 8
    assert sum(lost) / len(lost) < 0.1
