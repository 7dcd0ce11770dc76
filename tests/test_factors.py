"""Built models: the identity is the dense model, sizes are what was asked for, and the closed-form error is the real one."""

from pathlib import Path

import pytest
import torch
from local_vits import KINDS, MakeVit, cut, factors_of, fused_and_unfused, parameters, seen_at
from torch import Tensor

from spaces.allocation import Allocation
from spaces.errors import AllocationError, CheckpointError
from spaces.factors import Factors, fingerprint
from spaces.operators.linalg import blended
from spaces.operators.metric import METRIC_DAMPING
from spaces.sites import Site
from spaces.statistics import fisher_probe, token_weights


@pytest.mark.parametrize("kind", KINDS)
def test_identity_is_the_dense_model(make_vit: MakeVit, images: Tensor, kind: str) -> None:
    factors = factors_of(make_vit(**KINDS[kind]), images)
    with torch.no_grad():
        assert torch.equal(factors.build(factors.space.identity())(images), factors.dense(images))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", ["contract", "low-rank"])
def test_fused_equals_unfused_attention(make_vit: MakeVit, images: Tensor, kind: str, space: str) -> None:
    factors = factors_of(make_vit(**KINDS[kind]), images, space)
    allocation = cut(factors.space, lambda site: site.choices[len(site.choices) // 2])
    fused, unfused = fused_and_unfused(factors.build(allocation), images)
    assert torch.allclose(unfused, fused, atol=1e-4)
    with torch.no_grad():
        assert not torch.allclose(fused, factors.dense(images), atol=1e-3), "nothing was compressed"


@pytest.mark.parametrize("kind", ["plain", "no qkv bias", "no projection bias"])
def test_widest_cut_is_near_and_narrowest_is_far(make_vit: MakeVit, images: Tensor, kind: str) -> None:
    factors = factors_of(make_vit(**KINDS[kind]), images, "contract")
    with torch.no_grad():
        dense = factors.dense(images)
        distances = []
        for share in (0.0, 0.5, 0.99):
            allocation = cut(factors.space, lambda site, share=share: site.choices[int(share * (len(site.choices) - 1))])  # type: ignore[misc]
            distances.append(float((factors.build(allocation)(images) - dense).norm() / dense.norm()))
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 0.1


@pytest.mark.parametrize("suffix", ["attn.vo", "mlp.hidden", "mlp.fc2", "attn.proj"])
@pytest.mark.parametrize("kind", ["plain", "no projection bias"])
def test_closed_form_error_is_the_measured_one(make_vit: MakeVit, images: Tensor, kind: str, suffix: str) -> None:
    """One site of the first block cut, everything before it dense: the weighted error of the linear's output is known."""
    factors = factors_of(make_vit(**KINDS[kind]), images)
    site = next(site for site in factors.space.sites if site.name == f"blocks.0.{suffix}")
    size = site.choices[len(site.choices) // 2]
    model = factors.build(factors.space.identity().replace({site.name: size}))
    difference = seen_at(model, site.branch, images)[1] - seen_at(factors.dense, site.branch, images)[1]
    gradients: list[Tensor] = []
    branch = factors.dense.get_submodule(site.branch)
    handle = branch.register_forward_hook(lambda module, args, output: output.register_hook(gradients.append) and None)
    fisher_probe(factors.dense, images.clone().requires_grad_(), torch.Generator().manual_seed(0)).backward()
    handle.remove()
    weight = token_weights(gradients[0])
    gradient = gradients[0].flatten(0, 1)
    metric = blended(gradient.T @ gradient / (2 * len(images)), METRIC_DAMPING)
    costs = (difference @ metric * difference).sum(-1)
    measured = float((weight * costs).sum() / weight.sum())
    assert measured == pytest.approx(factors.error(site)[size], rel=0.05)


def test_errors_fall_with_size(make_vit: MakeVit, images: Tensor) -> None:
    factors = factors_of(make_vit(), images)
    for site in factors.space.sites:
        errors = list(factors.error(site).values())
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] == 0.0
        assert errors[0] > 0.0


def test_one_width_of_every_head_removes_exactly_these_parameters(make_vit: MakeVit, images: Tensor) -> None:
    """dim 32, 2 heads of 16. Query/key 16 -> 14: 2 heads x 2 rows x 2 weights x (32 + 1). FFN 128 -> 120: 8 x (32 + 1 + 32)."""
    factors = factors_of(make_vit(), images, "contract")

    def count(sizes: dict[str, int]) -> int:
        return parameters(factors.build(factors.space.identity().replace(sizes)))

    dense = count({})
    assert dense - count({"blocks.0.attn.qk": 14}) == 2 * 2 * 2 * 33
    assert dense - count({"blocks.0.attn.vo": 14}) == 2 * 2 * (33 + 32)
    assert dense - count({"blocks.0.mlp.hidden": 120}) == 8 * (32 + 1 + 32)


def test_building_leaves_the_dense_model_alone(make_vit: MakeVit, images: Tensor) -> None:
    factors = factors_of(make_vit(), images, "contract")
    before = fingerprint(factors.dense)
    built = factors.build(cut(factors.space, lambda site: site.choices[0]))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.zero_()
    assert fingerprint(factors.dense) == before


def test_save_and_load(make_vit: MakeVit, images: Tensor, tmp_path: Path) -> None:
    factors = factors_of(make_vit(), images)
    path = tmp_path / "factors" / "f.safetensors"
    factors.save(path, "mark")
    again = Factors.load(path, factors.dense, factors.space, "mark")
    allocation = cut(factors.space, _smaller_first)
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


def test_illegal_allocations_are_refused(make_vit: MakeVit, images: Tensor) -> None:
    factors = factors_of(make_vit(), images)
    identity = factors.space.identity()
    with pytest.raises(AllocationError, match="cannot be 7"):
        factors.build(identity.replace({"blocks.0.mlp.hidden": 7}))
    with pytest.raises(AllocationError, match="contract and low-rank at once"):
        factors.build(identity.replace({"blocks.0.attn.qk": 8, "blocks.0.attn.proj": 8}))
    with pytest.raises(AllocationError, match="no size for site"):
        factors.build(Allocation({"blocks.0.attn.qk": 8}))
