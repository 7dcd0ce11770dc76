"""Branches that are left out: their mean stays, what is lost is known, and so is what is saved."""

import copy
from itertools import product
from pathlib import Path

import pytest
import torch
from local_folders import PREPROCESSING, pictures_for
from local_vits import KINDS, MakeVit, cut, factors_of, parameters, seen_at
from torch import Tensor, nn

from objectives.cost.closed_form import cost_model
from objectives.cost.tracing import fvcore_macs, torch_macs
from spaces.errors import AllocationError
from spaces.factors import Factors
from spaces.folder.compressed import load_compressed, save_compressed
from spaces.modules import ConstantBranch
from spaces.operators.linalg import blended
from spaces.operators.metric import METRIC_DAMPING
from spaces.sites import DROP, Space
from spaces.statistics import fisher_probe, token_weights
from spaces.vit import describe, resize

SIZE = (3, 16, 16)
BRANCHES = ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"]


def dropped(space: Space, *branches: str) -> dict[str, int]:
    return {f"{branch}.branch": 0 for branch in branches}


def without(factors: Factors, *branches: str) -> nn.Module:
    return factors.build(factors.space.identity().replace(dropped(factors.space, *branches)))


def weighted(model: nn.Module, branch: str, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of a branch, the gradients there, and the weights of their tokens; [images, tokens, width] and without width."""
    gradients: list[Tensor] = []
    module = model.get_submodule(branch)
    handle = module.register_forward_hook(lambda module, args, output: output.register_hook(gradients.append) and None)
    fisher_probe(model, images.clone().requires_grad_(), torch.Generator().manual_seed(0)).backward()
    handle.remove()
    return seen_at(model, branch, images)[1], gradients[0], token_weights(gradients[0])


def constant(model: nn.Module, branch: str) -> ConstantBranch:
    module = model.get_submodule(branch)
    assert isinstance(module, ConstantBranch)
    return module


@pytest.mark.parametrize("branch", BRANCHES[:2])
@pytest.mark.parametrize("kind", KINDS)
def test_what_remains_is_the_mean_and_the_error_is_all_that_varies(
    make_vit: MakeVit, images: Tensor, kind: str, branch: str
) -> None:
    """Token by token, in plain Python: the mean, and the costs of all that differs from it."""
    factors = factors_of(make_vit(**KINDS[kind]), images[:16], "contract" if kind != "q/k norm" else "low-rank")
    outputs, gradient, weight = weighted(factors.dense, branch, images[:16])
    mean, mass = torch.zeros(32), 0.0
    for image, weights in zip(outputs, weight, strict=True):
        for token, share in zip(image, weights, strict=True):
            mean, mass = mean + share * token, mass + float(share)
    kept = constant(without(factors, branch), branch).bias.detach()
    assert torch.allclose(kept, mean / mass, atol=1e-4 * float(outputs.abs().max()))
    flat = gradient.flatten(0, 1)
    metric = blended(flat.T @ flat / (2 * 16), METRIC_DAMPING)
    lost = 0.0
    for image, weights in zip(outputs, weight, strict=True):
        for token, share in zip(image, weights, strict=True):
            lost += float(share * ((token - kept) @ metric @ (token - kept))) / mass
    site = next(site for site in factors.space.sites if site.name == f"{branch}.branch")
    assert factors.error(site) == {0: pytest.approx(lost, rel=0.02), 1: 0.0}


def test_without_gradients_it_is_the_plain_mean(make_vit: MakeVit, images: Tensor) -> None:
    factors = factors_of(make_vit(), images, "contract", gradients=False)
    for branch in BRANCHES:
        outputs = seen_at(factors.dense, branch, images)[1].flatten(0, 1)
        assert torch.allclose(constant(without(factors, branch), branch).bias, outputs.mean(0), atol=1e-4)
        site = next(site for site in factors.space.sites if site.name == f"{branch}.branch")
        variance = float((outputs - outputs.mean(0)).square().sum(-1).mean())
        assert factors.error(site)[0] == pytest.approx(variance, rel=1e-3)


@pytest.mark.parametrize("kind", ["plain", "layer-scale", "no class token"])
def test_the_block_adds_the_constant_to_every_token(make_vit: MakeVit, images: Tensor, kind: str) -> None:
    """With LayerScale its share of it; the rest of the block is the dense one's."""
    factors = factors_of(make_vit(**KINDS[kind]), images, "contract")
    model = without(factors, "blocks.1.attn", "blocks.1.mlp")
    before, after = seen_at(model, "blocks.1", images)
    block = model.get_submodule("blocks.1")
    with torch.no_grad():
        attention, ffn = (constant(model, f"blocks.1.{part}").bias for part in ("attn", "mlp"))
        added = block.ls1(attention) + block.ls2(ffn)  # type: ignore[operator]
    assert torch.allclose(after, before + added, atol=1e-5)


def test_stochastic_depth_drops_the_constant_image_by_image(make_vit: MakeVit, images: Tensor) -> None:
    factors = factors_of(make_vit(drop_path_rate=0.5), images, "contract")
    model = without(factors, "blocks.1.attn", "blocks.1.mlp").train()  # the last block's rate is 0.5
    torch.manual_seed(0)
    seen: list[Tensor] = []
    model.get_submodule("blocks.1").register_forward_hook(lambda module, args, output: seen.append(output - args[0]))
    model(images)
    attention, ffn = (2 * constant(model, f"blocks.1.{part}").bias for part in ("attn", "mlp"))  # 1 / 0.5 where it is kept
    choices = torch.stack([0 * ffn, attention, ffn, attention + ffn])
    distance = (seen[0].unsqueeze(1) - choices[:, None]).detach().abs().amax((2, 3))
    assert float(distance.amin(1).max()) < 1e-5
    assert len(distance.argmin(1).unique()) == 4


def test_the_constant_is_trained_and_the_dense_model_left_alone(make_vit: MakeVit, images: Tensor) -> None:
    factors = factors_of(make_vit(), images, "contract")
    before = copy.deepcopy(factors.dense.state_dict())
    model = without(factors, "blocks.0.attn", "blocks.1.mlp")
    model(images).square().sum().backward()
    assert all(bool(constant(model, name).bias.grad.abs().sum() > 0) for name in ("blocks.0.attn", "blocks.1.mlp"))  # type: ignore[union-attr]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(before[key], value) for key, value in factors.dense.state_dict().items())


@pytest.mark.parametrize("kind", ["plain", "no qkv bias", "layer-scale", "q/k norm", "gated FFN", "no class token"])
def test_costs_of_every_subset_equal_both_counters(make_vit: MakeVit, kind: str) -> None:
    """The other branches at smaller sizes."""
    model = make_vit(**KINDS[kind])
    space = describe(model, "full", multiple=4)
    costs = cost_model(model, space)
    for kept in product((0, 1), repeat=4):
        gone = [branch for branch, stays in zip(BRANCHES, kept, strict=True) if not stays]
        allocation = space.identity().replace(dropped(space, *gone))
        firsts = [rivals[0].sites[0] for branch, rivals in space.branches.items() if branch not in gone]
        others = {site.name: site.choices[0] for site in firsts}
        for chosen in (allocation, allocation.replace(others)):
            small = copy.deepcopy(model)
            resize(small, space, chosen)
            assert fvcore_macs(small, SIZE) == torch_macs(small, SIZE) == costs.count(chosen, "macs")
            assert parameters(small) == costs.count(chosen, "params")


def test_a_dropped_branch_saves_by_hand(make_vit: MakeVit) -> None:
    """17 tokens of 32, FFN 128: weights of the branch and its biases go, one bias of 32 stays."""
    model = make_vit()
    space = describe(model)
    costs, identity = cost_model(model, space), space.identity()

    def saved(branch: str) -> tuple[float, float]:
        smaller = costs.costs(identity.replace(dropped(space, branch)))
        return costs.dense["macs"] - smaller["macs"], costs.dense["params"] - smaller["params"]

    assert saved("blocks.0.attn") == (17 * 32 * 4 * 32 + 2 * 17 * 17 * 32, 33 * 3 * 32 + 33 * 32 - 32)
    assert saved("blocks.1.mlp") == (17 * 2 * 32 * 128, 33 * 128 + 129 * 32 - 32)


def test_a_branch_is_not_dropped_and_cut(make_vit: MakeVit) -> None:
    space = describe(make_vit(), "full")
    gone = dropped(space, "blocks.0.attn")
    space.validate(space.identity().replace(gone))
    with pytest.raises(AllocationError, match=r"blocks\.0\.attn is made smaller by contract and drop at once"):
        space.validate(space.identity().replace({**gone, "blocks.0.attn.qk": 8}))
    with pytest.raises(AllocationError, match=r"blocks\.0\.attn\.branch cannot be 2: choose one of 0, 1"):
        space.validate(space.identity().replace({"blocks.0.attn.branch": 2}))
    assert space.operators(space.identity().replace(gone))["blocks.0.attn"] == DROP


@pytest.mark.parametrize("branches", [("blocks.0.attn",), ("blocks.1.mlp", "blocks.1.attn"), tuple(BRANCHES)])
def test_a_folder_gives_the_model_back(make_vit: MakeVit, images: Tensor, tmp_path: Path, branches: tuple[str, ...]) -> None:
    factors = factors_of(make_vit(), images, "contract")
    allocation = cut(factors.space, lambda site: site.dense if site.branch in branches else site.choices[0])
    allocation = allocation.replace(dropped(factors.space, *branches))
    model = factors.build(allocation)
    description = {
        "architecture": "vit_tiny_patch16_224",
        "model_args": {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2},
        "num_classes": 5,
        "label_names": None,
        "space": "contract",
        "multiple": 4,
        "allocation": dict(allocation),
        "pretrained_cfg": PREPROCESSING,
        "pictures": pictures_for(3),
    }
    save_compressed(tmp_path, model, description)
    loaded = load_compressed(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
    assert loaded.state_dict().keys() == model.state_dict().keys()
