"""Laws of the closed-form operators: what truncation leaves out is what it costs, and full size is exact."""

import numpy as np
import pytest
import torch
from local_samples import covariance
from numpy.typing import NDArray
from torch import Tensor

from spaces.operators.contraction import query_key, value_output
from spaces.operators.least_squares import prefix_factors, prefix_weight, subset_weight
from spaces.operators.linalg import DAMPING, roots
from spaces.operators.low_rank import LowRankFactors, factorise
from spaces.operators.neurons import elimination_order, variance_order


def squared_error(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().sum(-1).mean())


def test_roots_of_a_singular_matrix_invert_on_its_range() -> None:
    basis = torch.linalg.qr(torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    matrix = basis @ torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)) @ basis.T
    root, inverse = roots(matrix, floor=1e-14)
    assert torch.allclose(root @ root, matrix, atol=1e-10)
    assert torch.allclose(inverse @ root @ basis, basis, atol=1e-6)
    root, inverse = roots(torch.zeros(3, 3))
    assert torch.equal(root, torch.eye(3))
    assert torch.equal(inverse, torch.eye(3))


@pytest.mark.parametrize("rank", [1, 5, 15])
def test_whitened_error_equals_the_spectrum_left_out(samples: Tensor, weight: Tensor, rank: int) -> None:
    factors = factorise(weight, covariance(samples))
    cut = factors.up[:, :rank] @ factors.down[:rank]
    measured = squared_error(samples @ weight.T, samples @ cut.T)
    assert measured == pytest.approx(float(factors.error[rank]), rel=1e-6)
    root = np.linalg.cholesky(covariance(samples).numpy())  # any root has the same spectrum
    assert measured == pytest.approx((np.linalg.svd(weight.numpy() @ root)[1][rank:] ** 2).sum(), rel=1e-4)


def test_whitened_beats_plain_and_full_rank_is_exact(samples: Tensor, weight: Tensor) -> None:
    whitened, plain = factorise(weight, covariance(samples)), factorise(weight)
    for rank in (2, 8, 12):
        errors = [squared_error(samples @ weight.T, samples @ (f.up[:, :rank] @ f.down[:rank]).T) for f in (whitened, plain)]
        assert errors[0] < errors[1]
    assert torch.allclose(whitened.up @ whitened.down, weight, atol=1e-6)
    assert float(whitened.error[-1]) == 0


def ridge_regression(samples: Tensor, weight: Tensor, kept: list[int]) -> NDArray[np.float64]:
    """The best weight of these inputs, by NumPy; damping is ridge regression: 24 more samples along the axes."""
    ridge = np.sqrt(len(samples) * DAMPING * float(covariance(samples).diagonal().mean())) * np.eye(24)
    rows = np.concatenate([samples.numpy(), ridge])
    solution: NDArray[np.float64] = np.linalg.lstsq(rows[:, kept], rows @ weight.numpy().T, rcond=None)[0].T
    return solution


@pytest.mark.parametrize("size", [4, 10, 15])
def test_pruning_is_least_squares_and_costs_what_it_says(samples: Tensor, weight: Tensor, size: int) -> None:
    factors = prefix_factors(weight, covariance(samples))
    corrected = prefix_weight(factors.projected, factors.triangle, size)
    assert np.allclose(corrected.numpy(), ridge_regression(samples, weight, list(range(size))), atol=1e-8)
    measured = squared_error(samples @ weight.T, samples[:, :size] @ corrected.T)
    assert measured == pytest.approx(float(factors.error[size]), rel=0.05)


def test_pruning_nothing_changes_nothing(samples: Tensor, weight: Tensor) -> None:
    factors = prefix_factors(weight, covariance(samples))
    assert torch.allclose(prefix_weight(factors.projected, factors.triangle, 24), weight, atol=1e-9)


@pytest.mark.parametrize("kept", [[0], [17, 3, 4], [0, 1, 2, 9, 10, 11, 5]])
def test_subset_weight_is_least_squares(samples: Tensor, weight: Tensor, kept: list[int]) -> None:
    factors = prefix_factors(weight, covariance(samples))
    found = subset_weight(factors.projected, factors.triangle, torch.tensor(kept))
    assert np.allclose(found.numpy(), ridge_regression(samples, weight, kept), atol=1e-8)


def test_a_subset_that_is_a_prefix_is_the_prefix(samples: Tensor, weight: Tensor) -> None:
    factors = prefix_factors(weight, covariance(samples))
    found = subset_weight(factors.projected, factors.triangle, torch.arange(7))
    assert torch.allclose(found, prefix_weight(factors.projected, factors.triangle, 7), atol=1e-9)


def naive_elimination(weight: Tensor, matrix: Tensor) -> list[int]:
    """Remove, one at a time, the input whose removal costs least after a full least-squares refit."""

    def error(kept: list[int]) -> float:
        gone = [i for i in range(len(matrix)) if i not in kept]
        schur = matrix[gone][:, gone]
        if kept:
            schur = schur - matrix[gone][:, kept] @ torch.linalg.solve(matrix[kept][:, kept], matrix[kept][:, gone])
        return float((weight[:, gone] @ schur @ weight[:, gone].T).trace())

    kept, removed = list(range(len(matrix))), []
    while kept:
        cheapest = min(kept, key=lambda i: error([j for j in kept if j != i]))
        kept.remove(cheapest)
        removed.append(cheapest)
    return removed[::-1]


@pytest.mark.parametrize("inputs", [24, 70])
def test_elimination_order_equals_brute_force(inputs: int) -> None:
    """70 inputs span several blocks of the blocked update."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(500, inputs, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    matrix = covariance(x) + 1e-4 * covariance(x).diagonal().mean() * torch.eye(inputs)
    weight = torch.randn(8, inputs, generator=generator, dtype=torch.float64)
    found = elimination_order(weight, covariance(x)).tolist()
    if inputs == 24:
        assert found == naive_elimination(weight, matrix)
    assert sorted(found) == list(range(inputs))
    by_variance = variance_order(weight, covariance(x))
    half = inputs // 2
    errors = [
        float(prefix_factors(weight[:, o], covariance(x)[o][:, o]).error[half]) for o in (torch.tensor(found), by_variance)
    ]
    assert errors[0] < errors[1]


def test_query_key_keeps_logits_at_full_width_and_costs_what_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    mix_q, mix_k = (torch.randn(8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    q = torch.randn(3000, 8, generator=generator, dtype=torch.float64) @ mix_q
    k = torch.randn(3000, 8, generator=generator, dtype=torch.float64) @ mix_k
    factors = query_key((q.T @ q / 3000)[None], (k.T @ k / 3000)[None])
    full = (q[:50] @ factors.query[0].T) @ (k[:50] @ factors.key[0].T).T
    assert torch.allclose(full, q[:50] @ k[:50].T, atol=1e-8)
    for width in (2, 5):
        logits = (q @ factors.query[0, :width].T) @ (k @ factors.key[0, :width].T).T
        measured = float((logits - q @ k.T).square().mean())
        assert measured == pytest.approx(float(factors.error[width]), rel=1e-6)  # q and k of all pairs are independent


def test_query_key_ignores_what_the_softmax_ignores() -> None:
    """Keys that differ from image to image by a constant only: width 1 is enough for the rest."""
    generator = torch.Generator().manual_seed(0)
    shift = 10 * torch.randn(20, 1, 4, generator=generator, dtype=torch.float64)
    direction = torch.randn(4, generator=generator, dtype=torch.float64)
    k = shift + torch.randn(20, 9, 1, generator=generator, dtype=torch.float64) * direction
    q = torch.randn(20, 9, 4, generator=generator, dtype=torch.float64)
    centred = (k - k.mean(1, keepdim=True)).flatten(0, 1)
    factors = query_key((q.flatten(0, 1).T @ q.flatten(0, 1) / 180)[None], (centred.T @ centred / 180)[None])
    dense = (q @ k.mT).softmax(-1)
    narrow = ((q @ factors.query[0, :1].T) @ (k @ factors.key[0, :1].T).mT).softmax(-1)
    assert torch.allclose(dense, narrow, atol=1e-3)


def test_value_output_is_exact_at_full_width_and_costs_what_it_says(samples: Tensor, weight: Tensor) -> None:
    heads, width = 3, 8
    factors = value_output(weight, covariance(samples), heads)
    for size in (8, 5, 2):
        narrow = torch.einsum("hrd,nhd->nrh", factors.value[:, :size], samples.reshape(-1, heads, width)).flatten(1)
        output = prefix_weight(factors.output.projected, factors.output.triangle, size * heads)
        measured = squared_error(samples @ weight.T, narrow @ output.T)
        assert measured == pytest.approx(float(factors.output.error[size * heads]), rel=0.02, abs=1e-6)
    assert float(factors.output.error[-1]) == 0


@pytest.mark.parametrize("rank", [1, 5, 15])
def test_a_metric_of_the_outputs_counts_in_the_error_and_is_minimised(samples: Tensor, weight: Tensor, rank: int) -> None:
    root = torch.diag(torch.logspace(0, -1, 16, dtype=torch.float64))
    metric, plain = root @ root, factorise(weight, covariance(samples))
    factors = factorise(weight, covariance(samples), metric)

    def cost(f: LowRankFactors) -> float:
        return squared_error(samples @ weight.T @ root, samples @ (f.up[:, :rank] @ f.down[:rank]).T @ root)

    assert cost(factors) == pytest.approx(float(factors.error[rank]), rel=1e-5)
    assert cost(factors) < cost(plain)
    order = elimination_order(root @ weight, covariance(samples))
    pruned = prefix_factors(weight[:, order], covariance(samples)[order][:, order], root)
    kept = prefix_weight(pruned.projected, pruned.triangle, rank)
    measured = squared_error(samples @ weight.T @ root, samples[:, order[:rank]] @ kept.T @ root)
    assert measured == pytest.approx(float(pruned.error[rank]), rel=1e-2)
