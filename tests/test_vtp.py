"""VTP: what the gates learn, what folding them keeps, and one threshold for all of them."""

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from local_digits import limits_of
from torch import Tensor, nn

from objectives.evaluator import Evaluator
from objectives.recipes.registry import open_workbench
from objectives.recipes.vtp import GlobalThreshold, train_gates


def test_a_gate_that_the_loss_does_not_see_falls(steps: Callable[[int], Evaluator]) -> None:
    """Neurons that are off for every image (GELU of -20) have a gradient from the penalty alone."""
    evaluator, off = steps(40), slice(0, 20)
    bench = open_workbench(evaluator.dense, "vtp", limits_of(evaluator.dense, macs=0.5), seed=0)
    bench.model = copy.deepcopy(evaluator.dense.model)
    with torch.no_grad():
        bench.model.get_parameter("blocks.0.mlp.fc1.weight")[off] = 0
        bench.model.get_parameter("blocks.0.mlp.fc1.bias")[off] = -20
    hidden = [site for site in bench.space.sites if site.part == "hidden"]
    _, gates = train_gates(bench, hidden)
    found = gates["blocks.0.mlp.hidden"]
    assert float(found[off].max()) < 0.2, "over the run a gate can travel from 1 to 0"
    assert float(found[off].max()) < float(found[20:].quantile(0.05))
    cut = GlobalThreshold(gates).share("blocks.0.mlp.hidden", 1 - 20 / 256)
    assert cut == pytest.approx(1 - 20 / 128), "they are the first to go"


def test_folding_the_gates_changes_nothing(evaluator: Evaluator, digits: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = open_workbench(evaluator.dense, "vtp", limits_of(evaluator.dense, macs=0.5), seed=0)
    genuine, seen = bench.train, list[Tensor]()

    def train(model: nn.Module, penalty: Callable[[], Tensor] | None = None) -> Iterator[object]:
        yield from genuine(model, penalty)
        with torch.no_grad():
            seen.append(model.eval()(digits))

    monkeypatch.setattr(bench, "train", train)
    model, gates = train_gates(bench, [site for site in bench.space.sites if site.part in ("inputs", "vo", "hidden")])
    assert len(gates) == 2 * 4
    assert float(torch.cat(list(gates.values())).std()) > 0.01, "gates have moved apart"
    with torch.no_grad():
        assert torch.allclose(model(digits), seen[0], atol=1e-5)
        assert not torch.allclose(model(digits), evaluator.dense.model(digits), atol=1e-3)


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
