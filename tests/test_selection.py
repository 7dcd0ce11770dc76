"""Plain slicing by given scores: a sliced model is the dense one with everything else masked."""

import copy

import pytest
import torch
from local_vits import HEADS, MakeVit, site_of, widths, with_four_heads
from torch import Tensor, nn

from spaces.errors import AllocationError
from spaces.factors import Factors
from spaces.operators.contraction import query_key_magnitude, value_output_magnitude
from spaces.operators.neurons import neuron_magnitude
from spaces.operators.registry import select
from spaces.sites import Site
from spaces.vit import describe

WIDTH, DIM = 8, 32  # of a head, of the model
# Site of block 0 -> size that it is cut to.
CUTS = {"attn.qk": 5, "attn.vo": 3, "attn.heads": 2, "mlp.hidden": 44, "attn.inputs": 20, "mlp.inputs": 12}


def scores_of(site: Site) -> Tensor:
    shape = (HEADS, site.dense) if site.kind in ("query_key", "value_output") else (site.dense,)
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(site.name)))


def dropped(scores: Tensor, size: int) -> list[int]:
    """Indices, heads after each other, of what is not among the `size` largest of every row; by Python's own sorting."""
    rows = scores.reshape(-1, scores.shape[-1]).tolist()
    return [
        index * len(row) + column
        for index, row in enumerate(rows)
        for column in sorted(range(len(row)), key=row.__getitem__)[: len(row) - size]
    ]


def mask(model: nn.Module, part: str, gone: list[int]) -> None:
    """Set to zero what a cut of this part takes away, whatever the number of rows and columns."""
    with torch.no_grad():
        if part == "attn.qk":
            for start in (0, HEADS * WIDTH):
                for name in ("weight", "bias"):
                    model.get_parameter(f"blocks.0.attn.qkv.{name}")[[start + index for index in gone]] = 0
            return
        if part == "attn.heads":
            gone = [WIDTH * head + channel for head in gone for channel in range(WIDTH)]
        reader = {"attn.inputs": "attn.qkv", "mlp.inputs": "mlp.fc1", "mlp.hidden": "mlp.fc2"}.get(part, "attn.proj")
        model.get_parameter(f"blocks.0.{reader}.weight")[:, gone] = 0


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        *(("heads", (part,)) for part in ("attn.qk", "attn.vo", "attn.heads", "mlp.hidden")),
        *(("gated", (part,)) for part in ("attn.inputs", "attn.vo", "mlp.inputs", "mlp.hidden")),
        ("heads", ("attn.qk", "attn.vo", "attn.heads", "mlp.hidden")),
        ("gated", ("attn.inputs", "attn.vo", "mlp.inputs", "mlp.hidden")),
    ],
)
def test_slicing_is_masking(make_vit: MakeVit, images: Tensor, name: str, parts: tuple[str, ...]) -> None:
    model = with_four_heads(make_vit)
    space = describe(model, name, multiple=4)
    scores = {site.name: scores_of(site) for site in widths(space)}
    sizes = {f"blocks.0.{part}": CUTS[part] for part in parts}
    masked = copy.deepcopy(model)
    for part in parts:
        mask(masked, part, dropped(scores[f"blocks.0.{part}"], CUTS[part]))
    factors = Factors.compute(model, space, [], scores=scores, sites=widths(space))
    built = factors.build(space.identity().replace(sizes))
    with torch.no_grad():
        assert torch.allclose(built(images), masked(images), atol=1e-5)
        assert not torch.allclose(built(images), model(images), atol=1e-3)


def test_inputs_go_where_neurons_must_stay(make_vit: MakeVit, images: Tensor) -> None:
    """A normalisation over the hidden width keeps every neuron; the inputs of the FFN are sliced all the same."""
    model = make_vit(scale_mlp_norm=True, num_heads=HEADS)
    space = describe(model, "gated", multiple=4)
    site = site_of(space, "blocks.0.mlp.inputs")
    scores = {entry.name: scores_of(entry) for entry in space.sites}
    masked = copy.deepcopy(model)
    mask(masked, "mlp.inputs", dropped(scores[site.name], CUTS["mlp.inputs"]))
    built = Factors.compute(model, space, [], scores=scores).build(space.identity().replace({site.name: CUTS["mlp.inputs"]}))
    with torch.no_grad():
        assert torch.allclose(built(images), masked(images), atol=1e-5)
        assert not torch.allclose(built(images), model(images), atol=1e-3)


def test_what_is_lost_are_the_smallest_scores(make_vit: MakeVit) -> None:
    model = with_four_heads(make_vit)
    space = describe(model, "gated", multiple=4)
    scores = {site.name: scores_of(site) for site in space.sites}
    factors = Factors.compute(model, space, [], scores=scores)
    for part in ("attn.vo", "attn.inputs", "mlp.hidden"):
        site = site_of(space, f"blocks.0.{part}")
        lost = scores[site.name].flatten()[dropped(scores[site.name], CUTS[part])].sum()
        assert factors.error(site)[CUTS[part]] == pytest.approx(float(lost), rel=1e-5)


def test_magnitude_is_what_comes_in_times_what_goes_out(make_vit: MakeVit) -> None:
    """Neurons of unit weights; 0-3 come in ten times and leave at a hundredth, 4-7 come in at a half and leave four times."""
    model = with_four_heads(make_vit)
    space = describe(model, "contract", multiple=4)
    first, second = (model.get_parameter(f"blocks.0.mlp.fc{layer}.weight") for layer in (1, 2))
    with torch.no_grad():
        first.div_(first.norm(dim=1, keepdim=True))
        second.div_(second.norm(dim=0))
        first[:4] *= 10
        second[:, :4] /= 100
        first[4:8] /= 2
        second[:, 4:8] *= 4
    scores = neuron_magnitude(model, site_of(space, "blocks.0.mlp.hidden"))
    expected = [0.01] * 4 + [4.0] * 4 + [1.0] * 120
    assert scores.tolist() == pytest.approx(expected, rel=1e-4)


def test_magnitude_of_head_channels_by_hand(make_vit: MakeVit) -> None:
    """All weights 1, but for one query row of 2s, one value row of 3s and one output column of 5s; sums over 32 weights."""
    model = with_four_heads(make_vit)
    space = describe(model, "contract", multiple=4)
    qkv, proj = model.get_parameter("blocks.0.attn.qkv.weight"), model.get_parameter("blocks.0.attn.proj.weight")
    with torch.no_grad():
        qkv.fill_(1)
        proj.fill_(1)
        qkv[1 * WIDTH + 3] = 2  # query 3 of head 1
        qkv[2 * DIM + 2 * WIDTH + 4] = 3  # value 4 of head 2
        proj[:, 3 * WIDTH + 5] = 5  # output of channel 5 of head 3
    query_key = query_key_magnitude(model, site_of(space, "blocks.0.attn.qk"))
    value_output = value_output_magnitude(model, site_of(space, "blocks.0.attn.vo"))
    assert query_key.shape == value_output.shape == (HEADS, WIDTH)
    assert query_key[1, 3] == 4 * DIM * DIM
    assert query_key.sum() == DIM * DIM * (31 + 4)
    assert value_output[2, 4] == 9 * DIM * DIM
    assert value_output[3, 5] == 25 * DIM * DIM
    assert value_output.sum() == DIM * DIM * (30 + 9 + 25)


def test_equal_scores_keep_the_first(make_vit: MakeVit) -> None:
    model = with_four_heads(make_vit)
    site = site_of(describe(model, "contract", multiple=4), "blocks.0.mlp.hidden")
    assert select(model, site, torch.ones(128))["order"].tolist() == list(range(128))


def test_sizes_that_are_not_offered_are_refused(make_vit: MakeVit) -> None:
    model = with_four_heads(make_vit)
    space = describe(model, "gated", multiple=4)
    factors = Factors.compute(model, space, [], scores={site.name: scores_of(site) for site in space.sites})
    with pytest.raises(AllocationError, match="cannot be 13: choose one of 4, 8, 12"):
        factors.build(space.identity().replace({"blocks.0.mlp.inputs": 13}))
