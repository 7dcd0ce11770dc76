"""What merged tokens cost and save: by hand, and against two independent counters on every kind of schedule."""

import copy
import random
from itertools import pairwise

import pytest
from local_vits import KINDS, MakeVit, cut, parameters, with_four_heads
from torch import nn

from objectives.cost.closed_form import cost_model
from objectives.cost.tracing import fvcore_macs, torch_macs
from spaces.allocation import Allocation
from spaces.sites import DROP, Space
from spaces.vit import describe, resize

SIZE = (3, 16, 16)  # 16 patches
TOKENS = {kind: options for kind, options in KINDS.items() if kind not in ("attention pooling", "rotary")}
FEATURES = {"name": "vit_tiny_patch16_224", "num_classes": 0}


def schedule(space: Space, rng: random.Random) -> tuple[int, ...]:
    """A random schedule: some blocks merge nothing, some all they may."""
    counts, entering = [], space.tokens[0].dense
    for site in space.tokens:
        least = -(-entering // 2)
        offered = (0, entering) if site.choices[0] == 0 else (least, entering, rng.randint(least, entering))
        counts.append(entering := rng.choice(offered))
    return tuple(counts)


def built(model: nn.Module, space: Space, allocation: Allocation) -> nn.Module:
    small = copy.deepcopy(model)
    resize(small, space, allocation)
    return small


def test_the_tail_by_hand(make_vit: MakeVit) -> None:
    """17 tokens of 32, FFN 128; in the last block 16 of them have no query, no output, no FFN, and ask none of 17 keys."""
    model = make_vit()
    space = describe(model)
    costs = cost_model(model, space)
    saved = 16 * (2 * 32 * 32 + 2 * 17 * 32 + 2 * 32 * 128)
    assert costs.dense["macs"] - costs.count(space.lossless(), "macs") == saved
    assert costs.dense["params"] == costs.count(space.lossless(), "params")
    assert costs.within((16, 0)).base["macs"] == costs.dense["macs"] - saved


def test_a_merging_block_by_hand(make_vit: MakeVit) -> None:
    """16 patch tokens, of which block 0 merges 6: 8 are compared with 8, by 32 numbers; 6 are assigned to 10.

    7 or 11 of 17 tokens are left for the FFN of block 0, and for block 1.
    """
    model = make_vit()
    space = describe(model)
    costs, allocation = cost_model(model, space), space.identity().replace({"blocks.0.tokens": 10, "blocks.1.tokens": 10})
    ffn, linears = 2 * 32 * 128, 4 * 32 * 32
    spent = 8 * 8 * 32 + 10 * 6 * 32
    saved = 6 * ffn + 6 * (ffn + linears) + 2 * 32 * (17 * 17 - 11 * 11)
    assert costs.dense["macs"] - costs.count(allocation, "macs") == saved - spent
    narrow = allocation.replace({"blocks.0.attn.qk": 4})
    narrower = 2 * 12 * (17 * 2 * 32 + 17 * 17)
    assert costs.count(allocation, "macs") - costs.count(narrow, "macs") == narrower


@pytest.mark.parametrize("name", ["full"])
@pytest.mark.parametrize("kind", [*TOKENS, "features"])
def test_closed_form_equals_both_counters_on_every_schedule(make_vit: MakeVit, kind: str, name: str) -> None:
    """With dense widths, with all of them cut, and with some branches dropped; blocks of another number in every turn."""
    model = make_vit(**{**TOKENS.get(kind, FEATURES), "num_heads": 4, "depth": 4})
    space = describe(model, name, multiple=4)
    assert len(space.tokens) == 4, space.skipped
    costs, rng, dense = cost_model(model, space), random.Random(kind), space.identity()
    for turn in range(4):
        tokens = space.scheduled(schedule(space, rng))
        operators = {branch: rng.choice(rivals) for branch, rivals in space.branches.items()}
        sizes = {site.name: rng.choice(site.choices) for operator in operators.values() for site in operator.sites}
        for allocation in (dense.replace(tokens), dense.replace({**tokens, **sizes})):
            small = built(model, space, allocation)
            counted = costs.count(allocation, "macs")
            assert fvcore_macs(small, SIZE) == torch_macs(small, SIZE) == counted, (turn, dict(allocation))
            assert parameters(small) == costs.count(allocation, "params")


@pytest.mark.parametrize("name", ["gated", "low-rank-sparse", "low-rank"])
def test_recipes_spaces_count_the_tail(make_vit: MakeVit, name: str) -> None:
    model = with_four_heads(make_vit)
    space = describe(model, name, multiple=4)
    costs = cost_model(model, space)
    allocation = cut(space, lambda site: site.choices[len(site.choices) // 3]).replace(space.scheduled((16, 0)))
    small = built(model, space, allocation)
    assert fvcore_macs(small, SIZE) == torch_macs(small, SIZE) == costs.count(allocation, "macs")


def test_within_a_schedule_costs_add_up_over_branches(make_vit: MakeVit) -> None:
    """So the knapsack may be solved inside it: what two cuts save together is the sum of what each saves."""
    model = make_vit(depth=3)
    space = describe(model)
    costs = cost_model(model, space)
    for counts in ((16, 16, 16), (12, 9, 0), (8, 8, 8)):
        base = space.identity().replace(space.scheduled(counts))
        cuts = [{"blocks.0.attn.qk": 4}, {"blocks.1.mlp.hidden": 16}, {"blocks.2.attn.branch": 0}, {"blocks.2.mlp.hidden": 64}]
        whole = costs.count(base, "macs")
        assert whole == costs.within(counts).base["macs"]
        alone = sum(whole - costs.count(base.replace(sizes), "macs") for sizes in cuts)
        together = base.replace({name: size for sizes in cuts for name, size in sizes.items()})
        assert whole - costs.count(together, "macs") == alone


def test_costs_fall_with_the_tokens_of_every_block(make_vit: MakeVit) -> None:
    """One token less everywhere from some block on: cheaper, though finding it costs something."""
    model = make_vit(embed_dim=64, num_heads=4, depth=4)
    space = describe(model)
    costs = cost_model(model, space)
    schedules = [(16,) * 4, (16, 16, 16, 0), (16, 8, 8, 0), (12, 8, 8, 0), (8, 4, 2, 0)]
    found = [costs.within(counts).base["macs"] for counts in schedules]
    assert all(cheaper < dearer for dearer, cheaper in pairwise(found))


def test_tokens_are_not_offered_where_they_cannot_be_merged(make_vit: MakeVit) -> None:
    for kind in ("attention pooling", "rotary"):
        space = describe(make_vit(**KINDS[kind]))
        assert space.tokens == ()
        assert [entry.name for entry in space.skipped if "tokens" in entry.name] == ["blocks.*.tokens"]
        assert space.lossless() == space.identity()
        assert space.schedule(space.identity()) == ()
        assert any(operator.name == DROP for rivals in space.branches.values() for operator in rivals)
