"""The library of schedules: all are valid, from a model of one patch to one of 256, and they differ in amount and shape."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from torch import nn

from spaces.sites import Space
from spaces.tokens.schedules import Schedule, schedules
from spaces.vit import describe

SIZES = [(1, 1), (1, 12), (4, 1), (4, 2), (4, 12), (16, 4), (16, 24), (49, 12), (49, 24), (196, 6), (196, 12), (256, 12)]
POOLED = {"class_token": False, "global_pool": "avg"}  # patch tokens leave the last block
PREFIX = {"class_token": True, "global_pool": "token"}  # they need not


def space_of(make_vit: Callable[..., nn.Module], patches: int, depth: int, options: dict[str, object]) -> Space:
    side = round(patches**0.5)
    return describe(make_vit(img_size=4 * side, depth=depth, embed_dim=8, num_heads=1, **options), multiple=4)


def middle(schedule: Schedule, patches: int) -> float:
    """Where tokens are merged, in the mean over what is merged: 0 in the first block."""
    merged = [before - after for before, after in pairwise((patches, *schedule))]
    return sum(block * count for block, count in enumerate(merged)) / sum(merged)


@pytest.mark.parametrize("options", [POOLED, PREFIX], ids=["pooled", "prefix"])
@pytest.mark.parametrize(("patches", "depth"), SIZES)
def test_every_schedule_is_valid(
    make_vit: Callable[..., nn.Module], patches: int, depth: int, options: dict[str, object]
) -> None:
    """In the order of their tokens, each once; the first one loses nothing."""
    space = space_of(make_vit, patches, depth, options)
    found = schedules(space)
    for schedule in found:
        space.validate(space.lossless().replace(space.scheduled(schedule)))
    assert found[0] == space.schedule(space.lossless())
    assert len(set(found)) == len(found)
    totals = [sum(schedule) for schedule in found]
    assert totals == sorted(totals, reverse=True)
    assert {schedule[-1] for schedule in found} == ({0} if options is PREFIX else {schedule[-1] for schedule in found})


@pytest.mark.parametrize(("patches", "depth"), [(16, 12), (49, 12), (196, 12), (256, 6), (256, 24)])
def test_they_differ_in_amount_and_in_shape(make_vit: Callable[..., nn.Module], patches: int, depth: int) -> None:
    """20 to 50; some merge a sixth or less, some five sixths, and of each some merge early and some late."""
    found = [schedule[:-1] for schedule in schedules(space_of(make_vit, patches, depth, PREFIX))]
    assert 20 <= len(found) <= 50
    for least, most in ((0.05, 0.17), (0.4, 0.6), (0.7, 0.9)):
        alike = [schedule for schedule in found if least <= 1 - schedule[-1] / patches <= most]
        middles = sorted(middle(schedule, patches) / (depth - 2) for schedule in alike)
        assert len(alike) >= 3
        assert middles[0] < 0.4
        assert middles[-1] > 0.6


def test_where_tokens_cannot_be_merged_there_is_one_schedule_without_counts(make_vit: Callable[..., nn.Module]) -> None:
    space = describe(make_vit(name="vit_small_patch16_dinov3"), multiple=4)
    assert space.tokens == ()
    assert schedules(space) == ((),)
    assert space.scheduled(()) == {}
