"""GOHSP's ranking of heads: the chain's laws, small chains solved by hand, and what the similarity must not see."""

import pytest
import torch
from torch import Tensor

from spaces.operators.head_graph import graph_scores, similarity, stationary, transition


def matrix(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def outputs(heads: int, width: int, tokens: int = 400) -> Tensor:
    """Correlated head outputs, [tokens, heads, width]."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(heads * width, heads * width, generator=generator, dtype=torch.float64)
    return (torch.randn(tokens, heads * width, generator=generator, dtype=torch.float64) @ mix).reshape(tokens, heads, width)


def second(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    return flat.T @ flat / len(flat)


def rotation(width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    orthogonal: Tensor = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    return orthogonal


def test_rows_of_the_chain_sum_to_one_and_an_isolated_head_goes_anywhere() -> None:
    weights = matrix((0, 3, 1, 0), (3, 0, 2, 0), (1, 2, 0, 0), (0, 0, 0, 0))
    found = transition(weights)
    assert torch.allclose(found.sum(1), torch.ones(4, dtype=torch.float64))
    assert found[0].tolist() == [0, 0.75, 0.25, 0]
    assert found[3].tolist() == [0.25] * 4


def test_three_nodes_by_hand() -> None:
    """pi = pi P with P = ((0, 1, 0), (1/2, 0, 1/2), (1/3, 1/3, 1/3)): pi_3 = pi_2 / 2 + pi_3 / 3, so pi_3 = 3/4 pi_2, and
    pi_1 = pi_2 / 2 + pi_3 / 3 = 3/4 pi_2; they sum to one: 3/10, 4/10, 3/10."""
    chain = matrix((0, 1, 0), (1 / 2, 0, 1 / 2), (1 / 3, 1 / 3, 1 / 3))
    assert stationary(chain).tolist() == pytest.approx([0.3, 0.4, 0.3], abs=1e-9)


def test_a_symmetric_similarity_gives_the_row_sums() -> None:
    """Detailed balance: a random walk on an undirected graph stays at a node as long as its edges weigh. Here 3, 5, 6 of 14."""
    weights = matrix((0, 1, 2), (1, 0, 4), (2, 4, 0))
    assert stationary(transition(weights)).tolist() == pytest.approx([3 / 14, 5 / 14, 6 / 14], abs=1e-9)


def test_an_isolated_head_is_never_visited_again() -> None:
    found = stationary(transition(matrix((0, 1, 0), (1, 0, 0), (0, 0, 0))))
    assert found.tolist() == pytest.approx([0.5, 0.5, 0], abs=1e-9)


@pytest.mark.parametrize("heads", [1, 2])
def test_a_chain_with_a_period_converges(heads: int) -> None:
    """Two heads are each other's only neighbour: without laziness the walk would jump to and fro for ever."""
    assert graph_scores(second(outputs(heads, 3)), heads).tolist() == pytest.approx([1 / heads] * heads)
    assert stationary(matrix((0, 1), (1, 0))).tolist() == pytest.approx([0.5, 0.5])


def test_the_similarity_of_a_head_to_itself_does_not_count() -> None:
    found = similarity(second(outputs(4, 3)), 4)
    assert torch.equal(found.diagonal(), torch.zeros(4, dtype=torch.float64))
    assert torch.allclose(found, found.T)
    off = found[~torch.eye(4, dtype=torch.bool)]
    assert off.min() > 0
    assert off.max() < 1


def test_heads_that_are_rotations_of_each_other_are_alike() -> None:
    x = outputs(3, 4)
    x[:, 1] = x[:, 0] @ rotation(4, 1)
    found = similarity(second(x), 3)
    assert float(found[0, 1]) == pytest.approx(1)
    assert float(found[0, 2]) < 0.99


def test_the_basis_that_a_head_computes_in_does_not_count() -> None:
    x = outputs(4, 3)
    turned = torch.stack([x[:, head] @ rotation(3, head) for head in range(4)], dim=1)
    assert not torch.allclose(second(x), second(turned), atol=0.1)
    assert torch.allclose(similarity(second(x), 4), similarity(second(turned), 4), atol=1e-10)


def test_the_size_of_a_head_does_not_count() -> None:
    x = outputs(3, 4)
    scaled = x * torch.tensor([1.0, 7.0, 0.2], dtype=torch.float64).reshape(1, 3, 1)
    assert torch.allclose(similarity(second(x), 3), similarity(second(scaled), 3))


def test_heads_of_independent_outputs_are_unlike() -> None:
    """Second moments that are block diagonal: no edge anywhere, so every head is as good as another."""
    blocks = torch.block_diag(*(second(outputs(1, 3)) * factor for factor in (1.0, 2.0, 5.0)))
    assert torch.equal(similarity(blocks, 3), torch.zeros(3, 3, dtype=torch.float64))
    assert graph_scores(blocks, 3).tolist() == pytest.approx([1 / 3] * 3)


def test_a_dead_head_has_no_neighbour() -> None:
    x = outputs(3, 4)
    x[:, 1] = 0
    found = similarity(second(x), 3)
    assert bool(found.isfinite().all())
    assert torch.equal(found[1], torch.zeros(3, dtype=torch.float64))
    assert float(graph_scores(second(x), 3)[1]) == pytest.approx(0, abs=1e-9)


def test_the_head_that_stands_for_the_others_ranks_first() -> None:
    """Head 0 is the sum of three independent ones, and is the only one that they resemble."""
    x = outputs(4, 2)
    generator = torch.Generator().manual_seed(5)
    x[:, 1:] = torch.randn(len(x), 3, 2, generator=generator, dtype=torch.float64)
    x[:, 0] = x[:, 1:].sum(1)
    assert int(graph_scores(second(x), 4).argmax()) == 0
