"""Matching and merging of tokens, against a slow loop and what is conserved."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from spaces.tokens.matching import Matching, destinations, match, merge
from spaces.tokens.structure import block_cost

COUNTS = [(8, 4), (8, 1), (9, 4), (9, 2), (3, 1), (2, 1), (7, 0)]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def by_hand(x: Tensor, metric: Tensor, sizes: Tensor, merged: int) -> tuple[list[Tensor], list[float], list[set[int]]]:
    """Of one image: tokens [n, d], their sizes, and which of the n tokens each is made of."""
    first, second = list(range(0, len(x), 2)), list(range(1, len(x), 2))
    proposals = [max((float(torch.cosine_similarity(metric[a], metric[b], dim=0)), a, b) for b in second) for a in first]
    proposals.sort(reverse=True)
    groups = {b: [b] for b in second}
    for _, a, b in proposals[:merged]:
        groups[b].append(a)
    kept = [[a] for _, a, _ in proposals[merged:]] + [groups[b] for b in second]
    totals = [float(sizes[group].sum()) for group in kept]
    averages = [
        sum((sizes[i] * x[i] for i in group), torch.zeros(x.shape[1])) / total
        for group, total in zip(kept, totals, strict=True)
    ]
    return averages, totals, [set(group) for group in kept]


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize(("count", "merged"), COUNTS)
def test_merging_is_what_a_slow_loop_gives(count: int, merged: int, prefix: int) -> None:
    x, metric = normal(3, prefix + count, 5), normal(3, count, 4)
    sizes = torch.randint(1, 6, (3, count), generator=torch.Generator().manual_seed(0)).float()
    matching = match(metric, merged)
    tokens, grown = merge(x, prefix, sizes, matching)
    into = destinations(matching, count)
    assert tokens.shape == (3, prefix + count - merged, 5)
    assert torch.equal(tokens[:, :prefix], x[:, :prefix]), "prefix tokens are left alone"
    for image in range(3):
        averages, totals, groups = by_hand(x[image, prefix:], metric[image], sizes[image], merged)
        assert torch.allclose(tokens[image, prefix:], torch.stack(averages), atol=1e-6)
        assert grown[image].tolist() == totals
        assert groups == [set((into[image] == place).nonzero().flatten().tolist()) for place in range(count - merged)]


@pytest.mark.parametrize(("count", "merged"), COUNTS)
def test_sums_weighted_by_size_are_conserved(count: int, merged: int) -> None:
    x, sizes = normal(2, count, 5), normal(2, count).abs() + 1
    tokens, grown = merge(x, 0, sizes, match(normal(2, count, 4), merged))
    assert torch.allclose((tokens * grown.unsqueeze(-1)).sum(1), (x * sizes.unsqueeze(-1)).sum(1), atol=1e-5)
    assert torch.allclose(grown.sum(1), sizes.sum(1))


def test_several_rounds_tell_of_every_original_token_where_it_is() -> None:
    """Sizes are then the numbers of original tokens, and tokens their plain means."""
    original = normal(4, 17, 6)
    x, sizes, source = original, None, torch.arange(17).expand(4, -1)
    for merged in (5, 6, 3, 1):
        matching = match(x, merged)
        source = destinations(matching, x.shape[1]).gather(1, source)
        x, sizes = merge(x, 0, sizes, matching)
    assert sizes is not None
    members = torch.nn.functional.one_hot(source, 2).float()
    assert torch.equal(members.sum(1), sizes)
    assert torch.allclose(members.mT @ original / sizes.unsqueeze(-1), x, atol=1e-6)


def test_images_do_not_see_each_other() -> None:
    x, metric = normal(6, 9, 5), normal(6, 9, 4)
    whole, sizes = merge(x, 1, None, match(metric[:, :8], 3))
    for image in range(6):
        alone, size = merge(x[image : image + 1], 1, None, match(metric[image : image + 1, :8], 3))
        assert torch.allclose(alone[0], whole[image], atol=1e-6)
        assert torch.equal(size[0], sizes[image])


def same(one: Matching, other: Matching) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_matched_in_float32_and_sizes_stay_whole(dtype: torch.dtype) -> None:
    metric, x = normal(4, 64, 16).to(dtype), normal(4, 64, 8).to(dtype)
    assert same(match(metric, 20), match(metric.float(), 20))
    with torch.autocast("cpu", torch.bfloat16):
        assert same(match(metric, 20), match(metric.float(), 20))
    tokens, sizes = merge(x, 0, torch.full((4, 64), 257.0), match(metric, 20))
    assert (tokens.dtype, sizes.dtype) == (dtype, torch.float32)
    assert float(sizes.sum()) == 4 * 64 * 257


def test_autocast_does_not_round_what_is_merged() -> None:
    x, matching = normal(2, 16, 8), match(normal(2, 16, 4), 5)
    plain, _ = merge(x, 0, None, matching)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(merge(x, 0, None, matching)[0], plain)


@pytest.mark.parametrize(("count", "merged"), [(16, 3), (15, 7), (9, 4)])
def test_the_closed_form_counts_what_torch_counts(count: int, merged: int) -> None:
    x, metric = normal(1, 2 + count, 12), normal(1, count, 6)
    with FlopCounterMode(display=False) as counter:
        merge(x, 2, None, match(metric, merged))
    assert counter.get_total_flops() == 2 * block_cost(count, count - merged, 6, 12) > 0
