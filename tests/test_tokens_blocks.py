"""Models whose patch tokens become fewer: equal to dense ones where they must be, whatever kind of vision transformer it is."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from local_tokens import ALL_KEPT, MODELS, PATCHES, largest, model_of, outputs, reduced, schedule_of
from local_vits import MakeVit, fused_and_unfused
from torch import Tensor, nn

from objectives.cost.tracing import fvcore_macs, torch_macs
from spaces.errors import AllocationError, ModelError
from spaces.tokens.blocks import ReducedBlock, ReducedBlocks
from spaces.tokens.structure import obstacle, patch_tokens, reads_prefix_alone, reduce_tokens

READS_PREFIX = [name for name in MODELS if name not in ("averaged", "no classes")]
TAIL = (16, 16, 0)


def all_reduced(model: nn.Module, keeps: int = PATCHES) -> nn.Module:
    """A model of which every block knows of sizes, and none merges."""
    prefix: int = model.num_prefix_tokens  # type: ignore[assignment]
    blocks = [ReducedBlock(block, prefix, keeps, keeps, tracks=True) for block in model.blocks]  # type: ignore[union-attr]
    model.blocks = ReducedBlocks(*blocks, prefix=prefix, gives_back=True)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_with_no_token_merged_a_model_is_the_dense_one(make_vit: MakeVit, images: Tensor, name: str) -> None:
    model = model_of(make_vit, name)
    blocks, wanted = model.blocks, outputs(model, images)
    reduce_tokens(model, ALL_KEPT)
    assert model.blocks is blocks
    assert largest(outputs(all_reduced(model), images) - wanted) < 1e-6 * max(1, largest(wanted))


@pytest.mark.parametrize("name", READS_PREFIX)
def test_the_tail_changes_no_output(make_vit: MakeVit, images: Tensor, name: str) -> None:
    model = model_of(make_vit, name)
    wanted, whole = outputs(model, images), torch_macs(model, (3, 16, 16))
    reduce_tokens(model, TAIL)
    assert largest(outputs(model, images) - wanted) < 1e-5 * max(1, largest(wanted))
    assert torch_macs(model, (3, 16, 16)) == fvcore_macs(model, (3, 16, 16)) < whole


@pytest.mark.parametrize("name", MODELS)
def test_images_do_not_see_each_other(make_vit: MakeVit, images: Tensor, name: str) -> None:
    model = model_of(make_vit, name)
    dense = outputs(model, images[:6])
    reduce_tokens(model, schedule_of(model))
    whole = outputs(model, images[:6])
    assert largest(whole - dense) > 1e-3, "merging is felt"
    assert largest(outputs(model, images[:6].flip(0)).flip(0) - whole) < 1e-5
    for image in range(6):
        assert largest(outputs(model, images[image : image + 1])[0] - whole[image]) < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_fused_attention_equals_unfused(make_vit: MakeVit, images: Tensor, name: str) -> None:
    model = model_of(make_vit, name)
    fused, unfused = fused_and_unfused(reduced(model, schedule_of(model)), images[:8])
    assert largest(fused - unfused) < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_names_and_weights_are_those_of_the_model_before(make_vit: MakeVit, images: Tensor, name: str) -> None:
    model = model_of(make_vit, name)
    before = dict(model.state_dict())
    model = reduced(copy.deepcopy(model), schedule_of(model))
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(found, before[key]) for key, found in model.state_dict().items())
    again = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    again.load_state_dict(before)
    assert torch.equal(outputs(again, images[:4]), outputs(model, images[:4]))


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_all_parameters(make_vit: MakeVit, images: Tensor, name: str) -> None:
    model = reduced(model := model_of(make_vit, name), schedule_of(model))
    model(images[:8]).square().sum().backward()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.abs().sum()]
    assert without == []


def test_gradients_are_those_of_finite_differences(make_vit: MakeVit, images: Tensor) -> None:
    model = model_of(make_vit, "contracted").double()
    reduce_tokens(model, schedule_of(model))
    weight = model.get_parameter("blocks.1.attn.qkv.weight")
    outputs_ = model(images[:4].double()).square().sum()
    (gradient,) = torch.autograd.grad(outputs_, weight)
    step = 1e-7 * gradient / gradient.norm()
    with torch.no_grad():
        weight.add_(step)
        above = model(images[:4].double()).square().sum()
        weight.sub_(2 * step)
        below = model(images[:4].double()).square().sum()
    assert float((above - below) / 2e-7) == pytest.approx(float(gradient.norm()), rel=1e-3)


def last_state(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, sizes and sources after the last block."""
    seen: list[Any] = []
    handle = model.blocks[-1].register_forward_hook(lambda module, args, output: seen.extend((output[0], *output[1])))  # type: ignore[index,union-attr]
    outputs(model, images)
    handle.remove()
    return seen[0], seen[1], seen[2]


def test_an_average_of_tokens_weighs_them_by_size(make_vit: MakeVit, images: Tensor) -> None:
    model = model_of(make_vit, "averaged")
    found = outputs(reduced(model, (13, 8, 5)), images)
    tokens, sizes, _ = last_state(model, images)
    assert tokens.shape[1] == 5
    assert sizes.sum(1).tolist() == [PATCHES] * len(images)
    assert len(set(sizes.flatten().tolist())) > 2
    with torch.no_grad():
        pooled = (tokens * sizes.unsqueeze(-1)).sum(1) / PATCHES
        wanted = model.head(model.fc_norm(pooled))  # type: ignore[operator]
    assert largest(found - wanted) < 1e-5


def test_a_model_without_classes_gives_all_patch_tokens_back(make_vit: MakeVit, images: Tensor) -> None:
    model = model_of(make_vit, "no classes")
    with torch.no_grad():
        dense = model.forward_features(images)  # type: ignore[operator]
        found = reduced(model, (13, 8, 7)).forward_features(images)  # type: ignore[operator]
    assert found.shape == dense.shape == (len(images), 1 + PATCHES, 32)
    for image, source in zip(found, last_state(model, images)[2], strict=True):
        assert len(image[1:].unique(dim=0)) == 7
        for place in range(7):
            assert len(image[1:][source == place].unique(dim=0)) == 1


@pytest.mark.parametrize("name", ["class token", "averaged", "no classes", "contracted", "q/k norm"])
def test_merging_tokens_that_are_alike_changes_nothing(make_vit: MakeVit, images: Tensor, name: str) -> None:
    """Patches 2i and 2i + 1 are the same, also in their positions: sizes make up for the missing half."""
    model, prefix = model_of(make_vit, name), int(name != "averaged")
    twice = images.reshape(-1, 3, 4, 4, 4, 4)[..., ::2, :].repeat_interleave(2, dim=4).reshape(-1, 3, 16, 16)
    with torch.no_grad():
        model.pos_embed[:, prefix::2] = model.pos_embed[:, prefix + 1 :: 2]  # type: ignore[index,operator]
        wanted = model.forward_features(twice)  # type: ignore[operator]
        found = reduced(model, (8, 8, 8)).forward_features(twice)  # type: ignore[operator]
    kept = 1 if reads_prefix_alone(model) else 1 + PATCHES
    assert largest(found[:, :kept] - wanted[:, :kept]) < 2e-5 * largest(wanted)


def test_sizes_weigh_as_so_many_copies_of_a_token(make_vit: MakeVit) -> None:
    """In every dtype and kernel: a block that sees sizes, and the dense block that sees the copies."""
    model = model_of(make_vit, "class token")
    dense = model.blocks[0]  # type: ignore[index]
    x, sizes = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 1, 5, 2, 1, 4]).expand(3, -1)
    copies = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.arange(6).repeat_interleave(sizes[0])])
    block = ReducedBlock(copy.deepcopy(dense), 1, 6, 6, tracks=False).eval()
    with torch.no_grad():
        wanted = dense(x[:, copies])  # type: ignore[operator]
        for dtype, error in ((torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float16, 0.01)):
            found = block.to(dtype)(x.to(dtype), (sizes.float(), None))[0]
            assert found.dtype == dtype
            assert largest(found[:, copies].float() - wanted) < error * largest(wanted)


def test_macs_of_a_schedule_by_hand(make_vit: MakeVit) -> None:
    """Heads 2 of 16, width 32, FFN 128, 1 + 16 tokens, 3 blocks: keeps 13, 8 and none."""
    model = model_of(make_vit, "class token")

    def block(seen: int, asked: int, left: int) -> int:
        return asked * 32 * 32 + seen * 32 * 64 + 2 * asked * seen * 32 + asked * 32 * 32 + left * 2 * 32 * 128

    patches, head = 16 * 32 * 48, 32 * 5
    whole = patches + head + 3 * block(17, 17, 17)
    assert torch_macs(model, (3, 16, 16)) == whole
    reduce_tokens(model, (13, 8, 0))
    blocks = block(17, 17, 14) + block(14, 14, 9) + block(9, 1, 1)
    merging = 32 * (8 * 8 + 13 * 3 + 6 * 7 + 8 * 5)  # compared, and assigned
    assert torch_macs(model, (3, 16, 16)) == fvcore_macs(model, (3, 16, 16)) == patches + head + blocks + merging


class _Constant(nn.Module):
    """What is left of a branch that was dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.linspace(-1, 1, 32))

    def forward(self, x: Tensor, **options: object) -> Tensor:
        return self.bias.view(1, 1, -1)


@pytest.mark.parametrize("dropped", ["attn", "mlp"])
def test_blocks_with_a_dropped_branch_merge_too(make_vit: MakeVit, images: Tensor, dropped: str) -> None:
    model = model_of(make_vit, "class token")
    for block in (0, 2):
        model.set_submodule(f"blocks.{block}.{dropped}", _Constant())
    wanted = outputs(model, images)
    assert largest(outputs(reduced(copy.deepcopy(model), TAIL), images) - wanted) < 1e-5
    found = outputs(reduced(model, (13, 8, 0)), images)
    assert found.isfinite().all()
    assert largest(found - wanted) > 1e-3


def test_a_mask_is_refused(make_vit: MakeVit, images: Tensor) -> None:
    model = reduced(model_of(make_vit, "class token"), TAIL)
    with pytest.raises(ModelError, match="takes no attention mask"):
        model.forward_features(images, is_causal=True)  # type: ignore[operator]


def checkpointed(model: Any, images: Tensor) -> Tensor:
    model.set_grad_checkpointing(True)
    found: Tensor = model(images)
    return found


BLOCK_BY_BLOCK: dict[str, Callable[[Any, Tensor], Any]] = {
    "features of blocks": lambda model, images: model.forward_intermediates(images),
    "features of the last block": lambda model, images: model.get_intermediate_layers(images, n=1),
    "features of the first blocks": lambda model, images: model.forward_intermediates(images, indices=[0], stop_early=True),
    "fewer blocks": lambda model, images: model.prune_intermediate_layers([0]),
    "gradient checkpointing": checkpointed,
}


@pytest.mark.parametrize("call", BLOCK_BY_BLOCK)
@pytest.mark.parametrize("counts", [TAIL, (13, 8, 0)])
def test_blocks_that_are_called_one_by_one_say_so(
    make_vit: MakeVit, images: Tensor, counts: tuple[int, ...], call: str
) -> None:
    """A dense model gives all of it; without knowing of each other's merged tokens, blocks give wrong tokens or none."""
    model = model_of(make_vit, "class token")
    BLOCK_BY_BLOCK[call](copy.deepcopy(model), images[:2])
    with pytest.raises(ModelError, match=r"tokens are merged runs its blocks as a whole.*: take the dense model") as caught:
        BLOCK_BY_BLOCK[call](reduced(model, counts), images[:2])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "vit_small_patch16_dinov3"}, "Eva is not timm's VisionTransformer"),
        ({"name": "beit_base_patch16_224"}, "Beit is not timm's"),
        ({"class_token": False, "global_pool": "map"}, "pooled by attention"),
        ({"dynamic_img_size": True}, "images of any size"),
        ({"patch_drop_rate": 0.5}, "drops patch tokens at random"),
        ({"attn_layer": "diff"}, "blocks.0.attn is a DiffAttention"),
        ({"name": "vit_small_patch16_18x2_224"}, "blocks.0 is a ParallelThingsBlock"),
    ],
)
def test_what_cannot_be_merged_says_why(make_vit: MakeVit, options: dict[str, Any], words: str) -> None:
    model = make_vit(**options)
    assert words in (obstacle(model) or "")
    with pytest.raises(ModelError, match=words):
        reduce_tokens(model, (16, 16))


def test_a_subclass_and_a_model_that_merges_already_are_refused(make_vit: MakeVit) -> None:
    model = reduced(model_of(make_vit, "class token"), TAIL)
    assert obstacle(model) == "its tokens are merged already"
    other = make_vit()
    other.__class__ = type("Other", (type(other),), {})
    assert "Other is not timm's" in (obstacle(other) or "")


@pytest.mark.parametrize(
    ("name", "counts", "words"),
    [
        ("class token", (16, 16), "2 counts for 3 blocks"),
        ("class token", (7, 7, 0), "block 0 may keep 8 to 16, not 7"),
        ("class token", (12, 13, 0), "block 1 may keep 6 to 12, not 13"),
        ("class token", (12, 0, 0), "block 1 may keep 6 to 12, not 0"),
        ("averaged", (12, 12, 0), "block 2 may keep 6 to 12, not 0"),
        ("no classes", (12, 9, 4), "block 2 may keep 5 to 9, not 4"),
    ],
)
def test_counts_that_are_no_schedule_are_refused(make_vit: MakeVit, name: str, counts: Sequence[int], words: str) -> None:
    model = model_of(make_vit, name)
    blocks = model.blocks
    assert patch_tokens(model) == PATCHES
    with pytest.raises(AllocationError, match=words):
        reduce_tokens(model, counts)
    assert model.blocks is blocks


def test_structure_needs_no_memory(make_vit: MakeVit, images: Tensor) -> None:
    """As an exported folder is loaded: shapes first, stored weights second."""
    wanted = reduced(model_of(make_vit, "distilled"), (13, 8, 0))
    with torch.device("meta"):
        model = model_of(lambda **options: make_vit(**options), "distilled")
        reduce_tokens(model.to("meta"), (13, 8, 0))
    assert not any(buffer.is_meta for buffer in model.buffers())
    model.load_state_dict(wanted.state_dict(), strict=True, assign=True)
    assert torch.equal(outputs(model, images[:4]), outputs(wanted, images[:4]))
