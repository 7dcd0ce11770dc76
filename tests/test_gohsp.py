"""GOHSP: weights are driven to the structure that an allocation allows, and removing the rest changes nothing."""

from collections.abc import Callable

import pytest
import torch
from local_digits import limits_of, sites_of
from torch import Tensor

from objectives.evaluator import Evaluator
from objectives.recipes.gohsp import Structure, alternate, rank_heads
from objectives.recipes.registry import open_workbench
from objectives.recipes.workbench import Workbench
from spaces.factors import Factors


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
    bench = open_workbench(evaluator.dense, "gohsp", limits_of(evaluator.dense, macs=0.5), seed=0)
    structure = structure_of(bench)
    residuals = alternate(bench, structure)
    assert residuals[0] > 0.3
    assert residuals[-1] < 0.5 * residuals[0]
    assert residuals[-1] == min(residuals)


def test_the_residual_is_what_the_structure_has_no_place_for(bench: Callable[[str], Workbench]) -> None:
    """Weights of one size everywhere: with every neuron kept, 2 of 4 heads, 5 of 8 and 6 of 8 channels of those."""
    structure = structure_of(bench("gohsp"))
    with torch.no_grad():
        for name, weight in structure.weights.items():
            weight.fill_(0.0 if "mlp" in name else 1.0)
    rows = 2 * 32 + 32  # queries and keys, values; 32 inputs each; and 32 x 32 output weights
    whole = rows * 32 + 32 * 32
    kept = (2 * 2 * 5 + 2 * 6) * 32 + 2 * 6 * 32
    assert structure.residual() == pytest.approx(((whole - kept) / whole) ** 0.5, rel=1e-6)


def test_removal_of_what_was_driven_to_zero_changes_nothing(bench: Callable[[str], Workbench], digits: Tensor) -> None:
    """Weights put on their projection: as many groups as are allowed, the heads of the best rank, and the same outputs."""
    structure = structure_of(found := bench("gohsp"))
    with torch.no_grad():
        for name, weight in structure.weights.items():
            weight.copy_(structure.allowed[name])
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
    built = Factors.compute(model, found.space, [], scores=structure.scores(), sites=found.cuts).build(structure.allocation)
    with torch.no_grad():
        assert torch.allclose(built(digits), model(digits), atol=1e-5)
