"""Matching and merging of tokens, against a slow loop and what is conserved."""

from math import sqrt

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from spaces.operators.base import Tokens
from spaces.tokens.matching import Matching, destinations, match, merge, take

COUNTS = [(8, 4), (8, 1), (9, 4), (9, 2), (3, 1), (2, 1)]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def sizes_of(*shape: int) -> Tensor:
    return torch.randint(1, 6, shape, generator=torch.Generator().manual_seed(0)).float()


def groups_by_hand(metric: Tensor, sizes: list[float], merged: int) -> list[list[int]]:
    """Of one image: which of the n tokens each one is made of afterwards, in the order of their positions."""

    def score(a: int, b: int) -> float:
        apart = 1 - float(torch.cosine_similarity(metric[a], metric[b], dim=0))
        return -sqrt(sizes[a] * sizes[b] / (sizes[a] + sizes[b])) * apart

    first, second = range(0, len(metric), 2), range(1, len(metric), 2)
    proposals = sorted((max((score(a, b), a, b) for b in second) for a in first), reverse=True)
    groups = {place: [place] for place in range(len(metric))}
    for _, a, b in proposals[:merged]:
        groups[b] += groups.pop(a)
    return [groups[place] for place in sorted(groups)]


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize(("count", "merged"), COUNTS)
def test_merging_is_what_a_slow_loop_gives(count: int, merged: int, sized: bool) -> None:
    """So tokens keep their order, and a merged one stands where the one that it went into did."""
    x, metric = normal(3, count, 5), normal(3, count, 4)
    sizes = sizes_of(3, count) if sized else torch.ones(3, count)
    matching = match(metric, sizes if sized else None, merged)
    tokens, grown = merge(x, sizes if sized else None, matching)
    into = destinations(matching, count)
    assert tokens.shape == (3, count - merged, 5)
    for image in range(3):
        groups = groups_by_hand(metric[image], sizes[image].tolist(), merged)
        assert matching.kept[image].tolist() == [group[0] for group in groups]
        assert sorted(matching.merged[image].tolist()) == sorted(place for group in groups for place in group[1:])
        for place, group in enumerate(groups):
            weights = sizes[image, group]
            assert torch.allclose(tokens[image, place], weights @ x[image, group] / weights.sum(), atol=1e-6)
            assert float(grown[image, place]) == float(weights.sum())
            assert set((into[image] == place).nonzero().flatten().tolist()) == set(group)


@pytest.mark.parametrize(("count", "merged"), COUNTS)
def test_sums_weighted_by_size_are_conserved(count: int, merged: int) -> None:
    x, sizes = normal(2, count, 5), normal(2, count).abs() + 1
    tokens, grown = merge(x, sizes, match(normal(2, count, 4), sizes, merged))
    assert torch.allclose((tokens * grown.unsqueeze(-1)).sum(1), (x * sizes.unsqueeze(-1)).sum(1), atol=1e-5)
    assert torch.allclose(grown.sum(1), sizes.sum(1))


@pytest.mark.parametrize(("count", "merged"), COUNTS)
def test_tokens_that_take_none_stay_as_they_are(count: int, merged: int) -> None:
    x, sizes = normal(2, count, 5), sizes_of(2, count)
    matching = match(normal(2, count, 4), sizes, merged)
    tokens, grown = merge(x, sizes, matching)
    alone = grown == sizes.gather(1, matching.kept)
    assert torch.equal(tokens[alone], take(x, matching.kept)[alone])
    assert int((~alone).sum()) == sum(len(set(partners)) for partners in matching.partner.tolist())


def test_several_rounds_tell_of_every_original_token_where_it_is() -> None:
    """Sizes are then the numbers of original tokens, and tokens their plain means."""
    original = normal(4, 17, 6)
    x, sizes, source = original, None, torch.arange(17).expand(4, -1)
    for merged in (5, 6, 3, 1):
        matching = match(x, sizes, merged)
        source = destinations(matching, x.shape[1]).gather(1, source)
        x, sizes = merge(x, sizes, matching)
    assert sizes is not None
    members = torch.nn.functional.one_hot(source, 2).float()
    assert torch.equal(members.sum(1), sizes)
    assert torch.allclose(members.mT @ original / sizes.unsqueeze(-1), x, atol=1e-6)


def test_larger_tokens_are_merged_later() -> None:
    """Two pairs that are equally far apart: the one whose tokens stand for fewer is merged first, whichever it is."""
    metric = torch.tensor([[1.0, 0, 0, 0], [1, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0.5]]).unsqueeze(0)
    for larger in range(4):
        sizes = torch.ones(1, 4)
        sizes[0, larger] = 2
        assert match(metric, sizes, 1).merged.tolist() == [[2 if larger < 2 else 0]]
    alike = metric.clone()
    alike[0, 1, 1] = 0.1
    assert match(alike, torch.tensor([[2.0, 1, 1, 1]]), 1).merged.tolist() == [[0]], "likeness still counts"


def test_tokens_that_are_the_same_merge_without_changing_anything() -> None:
    """Bit by bit, in every dtype: nothing is rounded that need not be."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        pairs = normal(3, 6, 8).to(dtype)
        x, sizes = pairs.repeat_interleave(2, dim=1), sizes_of(3, 12)
        matching = match(x, sizes, 6)
        tokens, grown = merge(x, sizes, matching)
        assert torch.equal(tokens, pairs)
        assert torch.equal(grown, sizes.reshape(3, 6, 2).sum(-1))
        assert torch.equal(take(tokens, destinations(matching, 12)), x)


def test_images_do_not_see_each_other() -> None:
    x, metric, sizes = normal(6, 8, 5), normal(6, 8, 4), sizes_of(6, 8)
    whole, grown = merge(x, sizes, match(metric, sizes, 3))
    for one in (slice(image, image + 1) for image in range(6)):
        alone, size = merge(x[one], sizes[one], match(metric[one], sizes[one], 3))
        assert torch.allclose(alone, whole[one], atol=1e-6)
        assert torch.equal(size, grown[one])


def same(one: Matching, other: Matching) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", [None, sizes_of(4, 64)])
def test_half_precision_is_matched_in_float32_and_sizes_stay_whole(dtype: torch.dtype, sizes: Tensor | None) -> None:
    metric, x = normal(4, 64, 16).to(dtype), normal(4, 64, 8).to(dtype)
    wanted = match(metric.float(), sizes, 20)
    assert same(match(metric, sizes, 20), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert same(match(metric, sizes, 20), wanted)
    tokens, grown = merge(x, torch.full((4, 64), 257.0), wanted)
    assert (tokens.dtype, grown.dtype) == (dtype, torch.float32)
    assert float(grown.sum()) == 4 * 64 * 257


def test_autocast_does_not_round_what_is_merged() -> None:
    x, matching = normal(2, 16, 8), match(normal(2, 16, 4), None, 5)
    plain, _ = merge(x, None, matching)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(merge(x, None, matching)[0], plain)


def test_gradients_reach_every_token_by_its_share_and_the_metric_not_at_all() -> None:
    x, metric, sizes = normal(2, 9, 5).requires_grad_(), normal(2, 9, 4).requires_grad_(), sizes_of(2, 9)
    matching = match(metric, sizes, 4)
    tokens, grown = merge(x, sizes, matching)
    (gradient,) = torch.autograd.grad(tokens.sum(), x)
    shares = sizes / grown.gather(1, destinations(matching, 9))
    assert torch.allclose(gradient, shares.unsqueeze(-1).expand_as(gradient), atol=1e-6)
    assert metric.grad is None and not any(entry.requires_grad for entry in matching)


@pytest.mark.parametrize(("count", "merged"), [(16, 3), (15, 7), (9, 4)])
def test_the_closed_form_counts_what_torch_counts(count: int, merged: int) -> None:
    x, sizes = normal(1, count, 12), sizes_of(1, count)
    tokens = Tokens(prefix=2, entering=count, leaving=count - merged)
    with FlopCounterMode(display=False) as counter:
        merge(x, sizes, match(normal(1, count, 12), sizes, merged))
    assert counter.get_total_flops() == 2 * 12 * (tokens.compared + tokens.assigned) > 0
