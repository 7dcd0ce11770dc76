from functools import partial

import pytest
import torch
from torch import Tensor, nn

from spaces.errors import DataError
from spaces.statistics import TOKEN_FLOOR, collect, fisher_probe

NAMES = ["blocks.0.attn.qkv", "blocks.1.mlp.fc2"]


def weighted(x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, covariance and metric by their definitions; x [B, T, d], gradient [B, T, m]."""
    norm = gradient.norm(dim=-1)
    w = (norm + TOKEN_FLOOR * norm.mean(1, keepdim=True)).flatten()
    flat, g = x.flatten(0, 1), gradient.flatten(0, 1)
    mean = (w @ flat) / w.sum()
    centred = flat - mean
    return mean, centred.T @ (w.unsqueeze(1) * centred) / w.sum(), g.T @ g / (2 * len(x))


def test_moments_equal_those_of_all_tokens_at_once(vit: nn.Module, images: Tensor) -> None:
    seen: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def observe(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        x, y = args[0].detach().double(), output.detach().double()
        output.register_hook(lambda gradient: seen.update({name: (x, y, gradient.double())}))

    handles = [vit.get_submodule(name).register_forward_hook(partial(observe, name)) for name in NAMES]
    inputs = images.clone().requires_grad_()
    fisher_probe(vit, inputs, torch.Generator().manual_seed(0)).backward()
    for handle in handles:
        handle.remove()
    vit.zero_grad(set_to_none=True)
    heads: int = vit.get_submodule("blocks.0.attn").num_heads  # type: ignore[assignment]
    moments = collect(vit, NAMES, images.split(10), {NAMES[0]: heads})
    for name in NAMES:
        x, _, gradient = seen[name]
        mean, covariance, metric = weighted(x, gradient)
        assert moments[name].count == x.shape[0] * x.shape[1]
        assert torch.allclose(moments[name].mean, mean, atol=1e-5)
        assert torch.allclose(moments[name].covariance, covariance, atol=1e-5)
        assert torch.allclose(moments[name].second(), covariance + torch.outer(mean, mean), atol=1e-5)
        found = moments[name].metric
        assert found is not None
        assert torch.allclose(found, metric, rtol=1e-3, atol=1e-4 * float(metric.abs().max()))
    _, y, gradient = seen[NAMES[0]]
    first = moments[NAMES[0]].heads
    assert first is not None and first.unit is not None and moments[NAMES[1]].heads is None
    width = y.shape[-1] // (3 * heads)
    query, g = y[..., :width], gradient[..., :width]
    mean, covariance, _ = weighted(query, g)
    assert torch.allclose(first.query[0], covariance + torch.outer(mean, mean), atol=1e-5)
    assert torch.allclose(first.key[0], first.key[0].T, atol=1e-8)
    unit = g.square().sum() / (2 * len(y) * first.key[0].trace())
    assert float(first.unit[0]) == pytest.approx(float(unit), rel=1e-3)


def test_parameters_get_no_gradient(make_vit, images: Tensor) -> None:  # type: ignore[no-untyped-def]
    model = make_vit()
    collect(model, NAMES, [images])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_probe_has_the_fisher_matrix_as_its_second_moment() -> None:
    torch.manual_seed(0)
    model = nn.Identity()
    model.num_classes = 4  # type: ignore[assignment]
    logits = torch.randn(4).expand(20000, 4).clone().requires_grad_()
    (g,) = torch.autograd.grad(fisher_probe(model, logits, torch.Generator().manual_seed(0)), logits)
    p = logits[0].detach().softmax(-1)
    assert torch.allclose(g.T @ g / len(g), torch.diag(p) - torch.outer(p, p), atol=0.01)


def test_a_model_without_classes_and_one_without_gradients(make_vit, images: Tensor) -> None:  # type: ignore[no-untyped-def]
    moments = collect(make_vit(num_classes=0), NAMES, [images])
    metric = moments[NAMES[0]].metric
    assert metric is not None and float(metric.trace()) > 0
    constant = make_vit()
    with torch.no_grad():
        constant.head.weight.zero_()
    moments = collect(constant, NAMES, [images])
    metric = moments[NAMES[0]].metric
    assert metric is not None and float(metric.abs().max()) == 0
    assert bool(moments[NAMES[0]].covariance.isfinite().all())
    assert float(moments[NAMES[0]].covariance.trace()) > 0


def test_batches_do_not_matter(vit: nn.Module, images: Tensor) -> None:
    one, many = (collect(vit, NAMES, images.split(size)) for size in (64, 7))
    for name in NAMES:
        assert torch.allclose(one[name].covariance, many[name].covariance, atol=1e-6)


def test_a_large_mean_does_not_cancel_the_variance() -> None:
    linear = nn.Sequential(nn.Linear(2, 2))
    x = torch.randn(8, 500, 2, generator=torch.Generator().manual_seed(0)) * 1e-2 + 1000
    moments = collect(linear, ["0"], x.split(2))["0"]
    assert torch.allclose(moments.covariance, x.double().flatten(0, 1).T.cov(correction=0), rtol=0.1, atol=1e-5)


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
