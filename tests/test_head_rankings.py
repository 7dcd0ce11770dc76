"""Which heads go first: rankings by hand, against brute force, and on models where the right head is known."""

import numpy as np
import pytest
import torch
from local_samples import covariance, mixed
from local_vits import MakeVit, factors_of, order_of, relative_error, site_of, with_four_heads
from torch import Tensor

from spaces.operators.heads import elimination_scores, energy_scores, magnitude_scores, taylor_scores


@pytest.mark.parametrize("ranking", ["elimination", "energy", "taylor"])
def test_a_head_without_output_weights_goes_first(make_vit: MakeVit, images: Tensor, ranking: str) -> None:
    model = with_four_heads(make_vit)
    with torch.no_grad():
        model.get_parameter("blocks.0.attn.proj.weight")[:, 16:24] = 0
    factors = factors_of(model, images, "heads", variants={"heads": ranking})
    assert order_of(factors)[-1] == 2
    built = factors.build(factors.space.identity().replace({"blocks.0.attn.heads": 3}))
    assert relative_error(built, model, images) < 1e-6


def test_a_copy_of_a_head_costs_nothing_under_elimination(make_vit: MakeVit, images: Tensor) -> None:
    """Heads 0 and 3 compute the same, so either can do the other's work; by its energy alone, neither would go."""
    model = with_four_heads(make_vit)
    with torch.no_grad():
        for part in range(3):
            for name in ("weight", "bias"):
                rows = model.get_parameter(f"blocks.0.attn.qkv.{name}")[32 * part : 32 * part + 32]
                rows[24:] = rows[:8]
        for columns in (slice(0, 8), slice(24, 32)):
            model.get_parameter("blocks.0.attn.proj.weight")[:, columns] *= 3
    keep = {"blocks.0.attn.heads": 3}
    factors = factors_of(model, images, "heads", variants={"heads": "elimination"})
    assert order_of(factors)[-1] in (0, 3)
    error = factors.error(site_of(factors.space, "blocks.0.attn.heads"))
    assert error[3] < 1e-2 * error[2]
    assert relative_error(factors.build(factors.space.identity().replace(keep)), model, images) < 1e-5
    by_energy = factors_of(model, images, "heads", variants={"heads": "energy"})
    assert order_of(by_energy)[-1] in (1, 2)


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
    samples = mixed(mix, 2000, generator)
    weight = torch.randn(7, 18, generator=generator, dtype=torch.float64)
    alive, removed = list(range(6)), []
    while len(alive) > 1:
        errors = {head: residual(samples, weight, [other for other in alive if other != head]) for head in alive}
        removed.append(min(errors, key=lambda head: errors[head]))
        alive.remove(removed[-1])
    assert elimination_scores(weight, covariance(samples), 6).argsort().tolist() == [*removed, *alive]


def test_energy_is_the_mean_square_of_what_a_head_brings(samples: Tensor, weight: Tensor) -> None:
    found = energy_scores(weight, covariance(samples), 8)
    for head in range(8):
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
    model = with_four_heads(make_vit)
    with torch.no_grad():
        proj = model.get_parameter("blocks.1.attn.proj.weight")
        proj.normal_(std=0.01, generator=torch.Generator().manual_seed(0))
        for rank, head in enumerate((2, 0, 3, 1)):
            proj[:, 8 * head : 8 * head + 8] *= 4.0**-rank
    assert order_of(factors_of(model, images, "heads", variants={"heads": "taylor"}), block=1) == [2, 0, 3, 1]
