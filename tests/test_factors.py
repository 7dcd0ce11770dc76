"""Built models: the identity is the dense model, sizes are what was asked for, and the closed-form error is the real one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spaces.allocation import Allocation
from spaces.errors import AllocationError, CheckpointError
from spaces.factors import Factors, fingerprint
from spaces.linalg import blended
from spaces.operators import METRIC_DAMPING
from spaces.sites import Site
from spaces.statistics import _probe, _weights
from spaces.vit import describe

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "distilled": {"name": "deit_tiny_distilled_patch16_224"},
    "layer-scale": {"name": "deit3_small_patch16_224"},
    "registers, layer-scale": {"name": "vit_small_patch14_reg4_dinov2"},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "no qkv bias": {"qkv_bias": False},
    "no projection bias": {"proj_bias": False},
    "q/k norm": {"qk_norm": True},
    "attention pooling": {"class_token": False, "global_pool": "map"},
    "gated FFN": {"name": "vit_giant_patch14_dinov2", "mlp_ratio": 4.0},
    "rotary": {"name": "vit_small_patch16_dinov3"},
}


def factors_of(make_vit: Callable[..., nn.Module], images: Tensor, kind: str, space: str = "full") -> Factors:
    model = make_vit(**KINDS[kind])
    return Factors.compute(model, describe(model, space, multiple=4), images.split(16))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_identity_is_the_dense_model(make_vit: Callable[..., nn.Module], images: Tensor, kind: str) -> None:
    factors = factors_of(make_vit, images, kind)
    with torch.no_grad():
        assert torch.equal(factors.build(factors.space.identity())(images), factors.dense(images))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", ["contract", "low-rank"])
def test_fused_equals_unfused_attention(make_vit: Callable[..., nn.Module], images: Tensor, kind: str, space: str) -> None:
    factors = factors_of(make_vit, images, kind, space)
    allocation = Allocation({site.name: site.choices[len(site.choices) // 2] for site in factors.space.sites})
    model = factors.build(allocation)
    with torch.no_grad():
        fused = model(images)
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
        assert torch.allclose(model(images), fused, atol=1e-4)
        assert not torch.allclose(fused, factors.dense(images), atol=1e-3), "nothing was compressed"


@pytest.mark.parametrize("kind", ["plain", "no qkv bias", "no projection bias"])
def test_widest_cut_is_near_and_narrowest_is_far(make_vit: Callable[..., nn.Module], images: Tensor, kind: str) -> None:
    factors = factors_of(make_vit, images, kind, "contract")
    with torch.no_grad():
        dense = factors.dense(images)
        distances = []
        for share in (0.0, 0.5, 0.99):
            allocation = Allocation(
                {site.name: site.choices[int(share * (len(site.choices) - 1))] for site in factors.space.sites}
            )
            distances.append(float((factors.build(allocation)(images) - dense).norm() / dense.norm()))
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 0.1


def branch_outputs(model: nn.Module, branch: str, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = model.get_submodule(branch).register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        model(images)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("suffix", ["attn.vo", "mlp.hidden", "mlp.fc2", "attn.proj"])
@pytest.mark.parametrize("kind", ["plain", "no projection bias"])
def test_closed_form_error_is_the_measured_one(
    make_vit: Callable[..., nn.Module], images: Tensor, kind: str, suffix: str
) -> None:
    """One site of the first block cut, everything before it dense: the weighted error of the linear's output is known."""
    factors = factors_of(make_vit, images, kind)
    site = next(site for site in factors.space.sites if site.name == f"blocks.0.{suffix}")
    size = site.choices[len(site.choices) // 2]
    model = factors.build(factors.space.identity().replace({site.name: size}))
    difference = branch_outputs(model, site.branch, images) - branch_outputs(factors.dense, site.branch, images)
    gradients: list[Tensor] = []
    branch = factors.dense.get_submodule(site.branch)
    handle = branch.register_forward_hook(lambda module, args, output: output.register_hook(gradients.append) and None)
    _probe(factors.dense, images.clone().requires_grad_(), torch.Generator().manual_seed(0)).backward()
    handle.remove()
    weight = _weights(gradients[0])
    gradient = gradients[0].flatten(0, 1)
    metric = blended(gradient.T @ gradient / (2 * len(images)), METRIC_DAMPING)
    costs = (difference @ metric * difference).sum(-1)
    measured = float((weight * costs).sum() / weight.sum())
    assert measured == pytest.approx(factors.error(site)[size], rel=0.05)


def test_errors_fall_with_size(make_vit: Callable[..., nn.Module], images: Tensor) -> None:
    factors = factors_of(make_vit, images, "plain")
    for site in factors.space.sites:
        errors = list(factors.error(site).values())
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] == 0.0
        assert errors[0] > 0.0


def test_one_width_of_every_head_removes_exactly_these_parameters(make_vit: Callable[..., nn.Module], images: Tensor) -> None:
    """dim 32, 2 heads of 16. Query/key 16 -> 14: 2 heads x 2 rows x 2 weights x (32 + 1). FFN 128 -> 120: 8 x (32 + 1 + 32)."""
    factors = factors_of(make_vit, images, "plain", "contract")

    def count(sizes: dict[str, int]) -> int:
        return sum(p.numel() for p in factors.build(factors.space.identity().replace(sizes)).parameters())

    dense = count({})
    assert dense - count({"blocks.0.attn.qk": 14}) == 2 * 2 * 2 * 33
    assert dense - count({"blocks.0.attn.vo": 14}) == 2 * 2 * (33 + 32)
    assert dense - count({"blocks.0.mlp.hidden": 120}) == 8 * (32 + 1 + 32)


def test_building_leaves_the_dense_model_alone(make_vit: Callable[..., nn.Module], images: Tensor) -> None:
    factors = factors_of(make_vit, images, "plain", "contract")
    before = fingerprint(factors.dense)
    built = factors.build(Allocation({site.name: site.choices[0] for site in factors.space.sites}))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.zero_()
    assert fingerprint(factors.dense) == before


def test_save_and_load(make_vit: Callable[..., nn.Module], images: Tensor, tmp_path: Path) -> None:
    factors = factors_of(make_vit, images, "plain")
    path = tmp_path / "factors" / "f.safetensors"
    factors.save(path, "mark")
    again = Factors.load(path, factors.dense, factors.space, "mark")
    allocation = Allocation({site.name: _smaller_first(site) for site in factors.space.sites})
    with torch.no_grad():
        assert torch.equal(factors.build(allocation)(images), again.build(allocation)(images))
    with pytest.raises(CheckpointError, match="another model"):
        Factors.load(path, factors.dense, factors.space, "other")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        Factors.load(path, factors.dense, factors.space, "mark")


def _smaller_first(site: Site) -> int:
    """The smallest size of the first operator's sites, the dense one of its rivals'."""
    return site.choices[0] if site.name.rpartition(".")[2] in ("qk", "vo", "hidden") else site.dense


def test_illegal_allocations_are_refused(make_vit: Callable[..., nn.Module], images: Tensor) -> None:
    factors = factors_of(make_vit, images, "plain")
    identity = factors.space.identity()
    with pytest.raises(AllocationError, match="cannot be 7"):
        factors.build(identity.replace({"blocks.0.mlp.hidden": 7}))
    with pytest.raises(AllocationError, match="contract and low-rank at once"):
        factors.build(identity.replace({"blocks.0.attn.qk": 8, "blocks.0.attn.proj": 8}))
    with pytest.raises(AllocationError, match="no size for site"):
        factors.build(Allocation({"blocks.0.attn.qk": 8}))
