"""The small layers equal masked dense ones, and models that have them survive a folder."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from conftest import TINY
from local_folders import PREPROCESSING, pictures_for
from local_vits import widths
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from objectives.cost.closed_form import cost_model
from objectives.cost.tracing import fvcore_macs, torch_macs
from objectives.deploy.formats import traced
from spaces import modules
from spaces.folder.compressed import load_compressed, save_compressed
from spaces.modules import ContractedAttention, Kernel, LowRankSparseLinear, SelectedLinear, kernel_for, selected_linear
from spaces.vit import describe, resize


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("bias", [True, False])
def test_selected_linear_is_a_dense_one_with_zero_columns(bias: bool) -> None:
    dense, kept = nn.Linear(7, 3, bias=bias), [5, 0, 4]
    layer = SelectedLinear(3, 3, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(dense.weight[:, kept])
        if bias:
            layer.bias.copy_(dense.bias)
        layer.kept.copy_(torch.tensor(kept))
        dense.weight[:, [1, 2, 3, 6]] = 0
        for shape in ((2, 7), (2, 5, 7)):
            x = normal(*shape)
            assert torch.allclose(layer(x), dense(x), atol=1e-6)
    assert type(selected_linear(7, 7, 3, bias)) is nn.Linear


@pytest.mark.parametrize("bias", [True, False])
def test_low_rank_sparse_linear_is_low_rank_plus_rows(bias: bool) -> None:
    """Outputs 1 and 4 of 6 are whole: there L R + S is any row; elsewhere S is zero."""
    up, down, sparse, offset = normal(6, 2), normal(2, 5), torch.zeros(6, 5), normal(6)
    whole, others = [1, 4], [0, 2, 3, 5]
    sparse[whole] = normal(2, 5)
    dense = up @ down + sparse
    layer = LowRankSparseLinear(5, 6, rank=2, whole=2, bias=bias)
    with torch.no_grad():
        layer.rows.weight.copy_(dense[whole])
        layer.down.weight.copy_(down)
        layer.up.weight.copy_(up[others])
        if bias:
            layer.rows.bias.copy_(offset[whole])
            layer.up.bias.copy_(offset[others])
        layer.order.copy_(torch.tensor([2, 0, 3, 4, 1, 5]))  # output 0 is the first of the others, output 1 the first whole row
        x = normal(4, 3, 5)
        assert torch.allclose(layer(x), nn.functional.linear(x, dense, offset if bias else None), atol=1e-5)


@pytest.mark.parametrize("name", ["heads", "gated", "low-rank-sparse"])
def test_a_folder_gives_the_model_back(make_vit: Callable[..., nn.Module], images: Tensor, tmp_path: Path, name: str) -> None:
    """Every site at another size, indices out of order."""
    options = {**TINY, "num_heads": 4}
    model = make_vit(num_heads=4)
    space = describe(model, name, multiple=4)
    picked = {site.name: site.choices[(3 * index) % len(site.choices)] for index, site in enumerate(widths(space))}
    sizes = space.identity().replace(picked)
    small = copy.deepcopy(model)
    resize(small, space, sizes)
    indices = 0
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.normal_(std=0.2)
        for key, buffer in small.named_buffers():
            if key.endswith((".kept", ".order")):
                buffer.copy_(torch.randperm(32)[: len(buffer)] if key.endswith("kept") else torch.randperm(len(buffer)))
                indices += 1
    assert indices > 0 or name == "heads"
    description = {
        "architecture": "vit_tiny_patch16_224",
        "model_args": {key: value for key, value in options.items() if key != "num_classes"},
        "num_classes": 5,
        "label_names": None,
        "space": name,
        "multiple": 4,
        "allocation": dict(sizes),
        "pretrained_cfg": PREPROCESSING,
        "pictures": pictures_for(3),
    }
    save_compressed(tmp_path, small, description)
    loaded = load_compressed(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(images), small.eval()(images))
    assert loaded.state_dict().keys() == small.state_dict().keys()
    assert loaded.pretrained_cfg["mean"] == PREPROCESSING["mean"]  # type: ignore[index]


def contracted(make_vit: Callable[..., nn.Module], widths: tuple[int, int]) -> tuple[nn.Module, int]:
    """A model whose heads have these widths of queries and keys, and of values; and its MACs in closed form."""
    model = make_vit()
    space = describe(model, multiple=4)
    sizes = {".qk": widths[0], ".vo": widths[1]}
    allocation = space.identity().replace({site.name: sizes[site.name[-3:]] for site in space.sites if site.name[-3:] in sizes})
    macs = cost_model(model, space).count(allocation, "macs")
    resize(model, space, allocation)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(normal(*parameter.shape) * 0.3)
    return model.eval(), int(macs)


def outputs_and_gradients(model: nn.Module, images: Tensor) -> list[Tensor]:
    outputs = model(images)
    outputs.square().sum().backward()
    return [outputs.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("widths", [(4, 12), (12, 8)])
@pytest.mark.parametrize("kernel", get_args(Kernel))
def test_all_kernels_give_the_same_outputs_and_gradients(
    make_vit: Callable[..., nn.Module],
    images: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    kernel: Kernel,
    widths: tuple[int, int],
) -> None:
    monkeypatch.setattr(modules, "kernel_for", lambda *shape: kernel)
    model, _ = contracted(make_vit, widths)
    found = outputs_and_gradients(copy.deepcopy(model), images[:4])
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]
    wanted = outputs_and_gradients(model, images[:4])
    assert len(found) == len(wanted) > 10
    for one, other in zip(found, wanted, strict=True):
        assert float((one - other).abs().max()) <= 1e-5 * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        ((16, 16, 17, "cpu"), "torch"),
        ((4, 8, 17, "cpu"), "products"),
        ((8, 4, 128, "cpu"), "products"),
        ((24, 40, 129, "cpu"), "padded"),
        ((24, 40, 197, "cuda"), "torch"),
        ((12, 16, 17, "cuda"), "padded"),
        ((16, 20, 197, "cuda"), "padded"),
        ((12, 12, 17, "cuda"), "torch"),
        ((4, 8, 17, "mps"), "torch"),
    ],
)
def test_kernel_of_widths_tokens_and_device(shape: tuple[int, int, int, str], kernel: Kernel) -> None:
    assert kernel_for(*shape) == kernel


@pytest.mark.parametrize("tokens", ["few", "many"])
def test_heads_that_differ_do_not_reach_the_slow_path_of_torch(make_vit: Callable[..., nn.Module], tokens: str) -> None:
    """Few tokens take no fused kernel at all, many take one."""
    side = 16 if tokens == "few" else 96
    model, _ = contracted(lambda: make_vit(img_size=side), (4, 12))
    with profile(activities=[ProfilerActivity.CPU]) as profiler, torch.no_grad():
        model(normal(2, 3, side, side))
    called = {event.key for event in profiler.key_averages()}
    assert "aten::_scaled_dot_product_attention_math" not in called
    assert ("aten::_scaled_dot_product_flash_attention_for_cpu" in called) == (tokens == "many")


@pytest.mark.parametrize("kernel", get_args(Kernel))
def test_exports_and_counts_have_the_widths_as_they_are(
    make_vit: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch, kernel: Kernel
) -> None:
    monkeypatch.setattr(modules, "kernel_for", lambda *shape: kernel)
    model, macs = contracted(make_vit, (4, 12))
    attention = [
        [argument.meta["val"].shape[-1] for argument in node.args[:3]]
        for node in traced(model).graph.nodes
        if node.target is torch.ops.aten.scaled_dot_product_attention.default
    ]
    assert attention == [[4, 4, 12]] * sum(isinstance(module, ContractedAttention) for module in model.modules())
    assert fvcore_macs(model, (3, 16, 16)) == torch_macs(model, (3, 16, 16)) == macs
