"""A timer whose times are a known function of a model's sizes: searches for a latency that depend on no machine."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from timm.layers import Mlp
from torch import nn

from objectives.latency import probe as latency_probe
from objectives.latency.timing import Timing
from objectives.latency.variants import FirstTokens
from search.runners.job import Need
from search.runners.worker import Measured, Ready, Stage, Worker
from spaces.allocation import Allocation
from spaces.branches import ATTENTION
from spaces.modules import ContractedAttention, LowRankLinear
from spaces.sites import Space
from spaces.tokens.blocks import ReducedBlock
from spaces.vit import resize

BASE, APART = 1e-3, 2e-4  # seconds of the rest of a model; of widths that differ
NORMS = 3e-4  # of a block, besides its branches
MERGING, MATCHED = 1e-4, 2e-4  # of a block that merges tokens, whatever their number; and at all tokens
READING, WEIGHING = 0.6, 0.3  # shares of attention: where few queries read all tokens, and where tokens have sizes


def seconds_of(model: Any) -> float:
    """Linear in every size and in the tokens of every block; unequal widths of heads and two linear layers take longer."""
    places = zip(model.blocks, places_of(model), strict=True)
    return BASE + sum(_block(model, block, *place) for block, place in places)


def places_of(model: Any) -> Iterator[tuple[int, int]]:
    """Patch tokens that enter every block, and that leave its attention."""
    patches, prefix = model.patch_embed.num_patches, model.num_prefix_tokens
    if isinstance(model.patch_drop, FirstTokens):
        patches = model.patch_drop.count - prefix
    for block in model.blocks:
        entering = patches
        if isinstance(block, ReducedBlock):
            assert block.entering == entering
            patches = block.leaving
        yield entering, patches


def _block(model: Any, block: Any, entering: int, leaving: int) -> float:
    patches, prefix = model.patch_embed.num_patches, model.num_prefix_tokens
    attention, ffn = sum(map(_seconds, block.attn.modules())), sum(map(_seconds, block.mlp.modules()))
    asked = entering if leaving else READING * entering
    tokens = (prefix + asked) * attention + (prefix + leaving) * ffn + (prefix + (entering + leaving) / 2) * NORMS
    if entering < patches and isinstance(block, ReducedBlock):
        tokens += WEIGHING * (prefix + entering) * attention
    merging = MERGING + MATCHED * entering / patches if 0 < leaving < entering else 0.0
    return float(tokens / (prefix + patches) + merging)


def _seconds(module: nn.Module) -> float:
    if isinstance(module, Mlp):
        return _linear(module.fc1) + _linear(module.fc2)
    if isinstance(module, ContractedAttention):
        widths = module.num_heads * (module.query_key_dim + 2 * module.value_dim)
        return _linear(module.qkv) + 1e-6 * widths + APART * (module.query_key_dim != module.value_dim)
    if isinstance(module, ATTENTION):
        heads, width = int(module.num_heads), int(module.head_dim)
        return _linear(module.qkv) + 1e-6 * heads * 3 * width
    return 0.0


def _linear(layer: object) -> float:
    if isinstance(layer, LowRankLinear):
        return 1e-4 + 1e-5 * layer.down.out_features
    assert isinstance(layer, nn.Linear)
    return 1e-7 * layer.weight.numel()


class FakeTimer:
    """In place of the timing of a latency table.

    Attributes:
        law: seconds of a model.
        timed: models that were timed, the dense one each time.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, law: Callable[[nn.Module], float] = seconds_of) -> None:
        self.law, self.timed = law, list[nn.Module]()
        monkeypatch.setattr(latency_probe, "forward", lambda model, images, setting: model)
        monkeypatch.setattr(latency_probe, "time_calls", self._time)

    def _time(self, calls: Mapping[str, Any], *arguments: Any) -> dict[str, Timing]:
        self.timed += calls.values()
        return {name: Timing((self.law(model),)) for name, model in calls.items()}


class FakeTimedWorker(Worker):
    """A worker in whose process a latency table is made of `seconds_of`."""

    def prepare(self, needs: Sequence[Need], rank: int = 0) -> Iterator[Stage | Measured | Ready]:
        FakeTimer(pytest.MonkeyPatch())
        yield from super().prepare(needs, rank)


def cut(model: nn.Module, space: Space, allocation: Allocation) -> nn.Module:
    """The structure of an allocation."""
    with torch.no_grad():
        small = copy.deepcopy(model)
        resize(small, space, allocation)
    return small
