"""The small layers equal masked dense ones, and models that have them survive a folder."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY
from local_folders import PREPROCESSING, pictures_for
from torch import Tensor, nn

from spaces.allocation import Allocation
from spaces.folder.compressed import load_compressed, save_compressed
from spaces.modules import LowRankSparseLinear, SelectedLinear, selected_linear
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
    sizes = Allocation({site.name: site.choices[(3 * index) % len(site.choices)] for index, site in enumerate(space.sites)})
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
