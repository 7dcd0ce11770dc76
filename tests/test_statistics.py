import pytest
import torch
from torch import Tensor, nn

from spaces.errors import DataError
from spaces.statistics import collect

NAMES = ["blocks.0.attn.qkv", "blocks.1.mlp.fc2"]


def inputs_of(model: nn.Module, name: str, images: Tensor) -> Tensor:
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(images)
    handle.remove()
    return seen[0].double()


def test_moments_equal_those_of_all_tokens_at_once(vit: nn.Module, images: Tensor) -> None:
    moments = collect(vit, NAMES, images.split(10), per_image=NAMES[:1])
    for name in NAMES:
        x = inputs_of(vit, name, images)
        flat = x.flatten(0, 1)
        assert moments[name].count == len(flat)
        assert torch.allclose(moments[name].mean, flat.mean(0), atol=1e-6)
        assert torch.allclose(moments[name].covariance, flat.T.cov(correction=0), atol=1e-5)
        assert torch.allclose(moments[name].second(), flat.T @ flat / len(flat), atol=1e-5)
    x = inputs_of(vit, NAMES[0], images)
    centred = (x - x.mean(1, keepdim=True)).flatten(0, 1)
    within = moments[NAMES[0]].within
    assert within is not None
    assert torch.allclose(within, centred.T @ centred / len(centred), atol=1e-5)
    assert moments[NAMES[1]].within is None


def test_batches_do_not_matter(vit: nn.Module, images: Tensor) -> None:
    one, many = (collect(vit, NAMES, images.split(size)) for size in (64, 7))
    for name in NAMES:
        assert torch.allclose(one[name].covariance, many[name].covariance, atol=1e-6)


def test_a_large_mean_does_not_cancel_the_variance() -> None:
    linear = nn.Sequential(nn.Linear(2, 2))
    x = torch.randn(8, 500, 2, generator=torch.Generator().manual_seed(0)) * 1e-2 + 1000
    moments = collect(linear, ["0"], x.split(2))["0"]
    assert torch.allclose(moments.covariance, x.double().flatten(0, 1).T.cov(correction=0), rtol=0.02, atol=1e-6)


def test_no_image_and_broken_weights_are_refused(make_vit, images: Tensor) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match="no image"):
        collect(make_vit(), NAMES, [])
    broken = make_vit()
    with torch.no_grad():
        broken.blocks[0].norm1.weight[0] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        collect(broken, NAMES, [images])


def test_model_is_left_as_it_was(make_vit, images: Tensor) -> None:  # type: ignore[no-untyped-def]
    model = make_vit().train()
    collect(model, NAMES, [images])
    assert model.training
    assert not model.blocks[0].attn.qkv._forward_pre_hooks
