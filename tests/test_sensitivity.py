"""The profile: measured with one site cut alone, equal to the measurement where there is one, and safe against noise."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from local_vits import KINDS
from torch import Tensor, nn

from objectives.profile import Profile
from objectives.sensitivity import informative, measure_profile
from spaces.errors import CheckpointError, DataError
from spaces.factors import Factors
from spaces.vit import describe


def factors_of(model: nn.Module, images: Tensor, space: str = "contract") -> Factors:
    return Factors.compute(model, describe(model, space, multiple=4), images.split(16))  # type: ignore[no-untyped-call]


def profile_of(factors: Factors, images: Tensor, sizes: int = 3) -> Profile:
    return measure_profile(factors, factors.dense, images.split(24), sizes=sizes)  # type: ignore[no-untyped-call]


def made(closed: dict[int, float], measured: dict[int, float]) -> dict[int, float]:
    """Corrected errors of a profile of one site."""
    return dict(Profile(closed={"site": closed}, measured={"site": measured}, images=1).errors["site"])


# The correction, by hand


def test_between_measured_sizes_the_ratio_is_a_line_in_the_logarithm() -> None:
    """Twice the closed form at 8, equal to it at 2: half-way in the logarithm, at 4, the ratio is the root of 2."""
    errors = made({1: 16.0, 2: 8.0, 3: 4.0, 4: 2.0, 5: 1.0, 6: 0.0}, {2: 16.0, 4: 2.0})
    assert errors == pytest.approx({1: 32.0, 2: 16.0, 3: 4 * math.sqrt(2), 4: 2.0, 5: 1.0, 6: 0.0})
    assert list(errors) == [1, 2, 3, 4, 5, 6]


def test_without_measurements_errors_are_the_closed_form() -> None:
    assert made({1: 3.0, 2: 1.0, 3: 0.0}, {}) == pytest.approx({1: 3.0, 2: 1.0, 3: 0.0})


@pytest.mark.parametrize(("measured", "factor"), [(0.0, -3), (-1e-9, -3), (1e-30, -3), (1e9, 3), (2.0 * math.e**2, 2)])
def test_noise_moves_an_error_by_e_cubed_at_most(measured: float, factor: int) -> None:
    assert made({1: 2.0, 2: 0.0}, {1: measured})[1] == pytest.approx(2 * math.exp(factor))


def test_errors_never_grow_with_the_size() -> None:
    assert made({1: 4.0, 2: 2.0, 3: 1.0, 4: 0.0}, {1: 1.0, 2: 3.0, 3: 0.5}) == pytest.approx({1: 3, 2: 3, 3: 0.5, 4: 0})


def test_sizes_to_measure_are_spaced_by_their_errors() -> None:
    """Between 1 and 0.02 the middle of the logarithm is 0.14; 0.005 is below a hundredth of the largest."""
    errors = {8: 1.0, 16: 0.3, 24: 0.1, 32: 0.05, 40: 0.02, 48: 0.005, 56: 0.0}
    assert informative(errors, 3) == [8, 24, 40]
    assert informative(errors, 2) == [8, 40]
    assert informative(errors, 1) == [8]
    assert informative(errors, 9) == [8, 16, 24, 32, 40]
    assert informative({8: 1.0, 16: 0.0}, 3) == [8]
    assert informative({8: 0.0, 16: 0.0}, 3) == []


# Measuring


@pytest.mark.parametrize("space", ["full", "heads"])
@pytest.mark.parametrize("kind", KINDS)
def test_measured_is_the_divergence_of_the_model_with_one_site_cut(
    make_vit: Callable[..., nn.Module], images: Tensor, kind: str, space: str
) -> None:
    """Against the whole model run from its images, though the measurement resumes it at the block that was cut."""
    factors = factors_of(make_vit(**KINDS[kind]), images, space)
    profile = profile_of(factors, images, sizes=2)
    assert profile.images == len(images)
    assert set(profile.measured) == {site.name for site in factors.space.sites}
    with torch.no_grad():
        p = factors.dense(images).double().softmax(-1)
        for name, found in profile.measured.items():
            for size, value in found.items():
                q = factors.build(factors.space.identity().replace({name: size}))(images).double().softmax(-1)
                assert value == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-3, abs=1e-9), (name, size)


def test_without_classes_the_features_are_compared(make_vit: Callable[..., nn.Module], images: Tensor) -> None:
    """In the unit of the closed form: half the squared change, summed over an image; equal to it where little is lost."""
    factors = factors_of(make_vit(num_classes=0), images)
    profile = profile_of(factors, images)
    name, found = next((name, found) for name, found in profile.measured.items() if name == "blocks.1.mlp.hidden")
    with torch.no_grad():
        for size, value in found.items():
            cut = factors.build(factors.space.identity().replace({name: size}))
            change = cut.forward_features(images) - factors.dense.forward_features(images)  # type: ignore[operator]
            assert value == pytest.approx(float(change.square().sum((1, 2)).mean() / 2), rel=1e-3)
            assert value == pytest.approx(profile.closed[name][size], rel=0.5)


def test_errors_are_the_measured_ones_and_zero_at_the_dense_size(vit: nn.Module, images: Tensor) -> None:
    factors = factors_of(vit, images)
    profile = profile_of(factors, images)
    for site in factors.space.sites:
        errors, found = profile.errors[site.name], profile.measured[site.name]
        assert list(errors) == list(site.choices)
        assert errors[site.dense] == 0.0
        assert list(errors.values()) == sorted(errors.values(), reverse=True)
        assert site.choices[0] in found
        assert list(found.values()) == sorted(found.values(), reverse=True), "this model's measurements fall with the size"
        for size, value in found.items():
            closed = profile.closed[site.name][size]
            assert errors[size] == pytest.approx(min(closed * math.e**3, max(closed / math.e**3, value)), rel=1e-6)


def test_what_the_model_does_not_depend_on_costs_nothing(make_vit: Callable[..., nn.Module], images: Tensor) -> None:
    """Nothing leaves block 1: neither its neurons nor its attention can be missed."""
    model = make_vit()
    with torch.no_grad():
        for name in ("attn.proj", "mlp.fc2"):
            for parameter in model.get_submodule(f"blocks.1.{name}").parameters():
                parameter.zero_()
    errors = profile_of(factors_of(model, images), images).errors
    for name, found in errors.items():
        assert (max(found.values()) < 1e-9) == name.startswith("blocks.1."), name


def test_without_images_nothing_is_measured(vit: nn.Module, images: Tensor) -> None:
    factors = factors_of(vit, images)
    seen: list[tuple[int, int]] = []
    profile = measure_profile(factors, vit, [], lambda done, total: seen.append((done, total)))
    assert (profile.measured, profile.images, seen) == ({}, 0, [])
    assert profile.errors == {site.name: pytest.approx(factors.error(site)) for site in factors.space.sites}


def test_measuring_leaves_the_dense_model_alone_and_says_how_far_it_is(vit: nn.Module, images: Tensor) -> None:
    factors = factors_of(vit, images)
    with torch.no_grad():
        before = vit(images)
        seen: list[tuple[int, int]] = []
        profile = measure_profile(factors, vit, [images], lambda done, total: seen.append((done, total)))
        assert torch.equal(vit(images), before)
    total = sum(map(len, profile.measured.values()))
    assert seen == [(done, total) for done in range(total + 1)]


def test_outputs_that_are_not_finite_name_the_site(vit: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    factors = factors_of(vit, images)
    build = factors.build

    def broken(allocation: dict[str, int]) -> nn.Module:
        model = build(allocation)  # type: ignore[arg-type]
        if allocation["blocks.1.mlp.hidden"] == 4:
            with torch.no_grad():
                model.get_parameter("blocks.1.mlp.fc2.weight").fill_(math.nan)
        return model

    monkeypatch.setattr(factors, "build", broken)
    with pytest.raises(DataError, match=r"outputs with blocks\.1\.mlp\.hidden at 4 are not finite on the calibration images"):
        profile_of(factors, images)


# On disk


def stored(tmp_path: Path) -> tuple[Path, Profile]:
    profile = Profile(closed={"a": {8: 0.25, 16: 0.0}}, measured={"a": {8: 0.5}}, images=7, sizes=2)
    profile.save(tmp_path / "mark.profile.json", "mark")
    return tmp_path / "mark.profile.json", profile


def test_save_and_load(tmp_path: Path) -> None:
    path, profile = stored(tmp_path)
    assert Profile.load(path, "mark") == profile
    assert Profile.load(path, "other") is None
    path.write_text(path.read_text().replace('"format": 1', '"format": 0'))
    assert Profile.load(path, "mark") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:40],
        lambda text: "[]",
        lambda text: text.replace('"images"', '"image"'),
        lambda text: text.replace("0.25", '"much"'),
        lambda text: text.replace("0.25", "NaN"),
        lambda text: json.dumps({**json.loads(text), "closed": [1]}),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[str], str]) -> None:
    path, _ = stored(tmp_path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(CheckpointError, match=r"mark\.profile\.json cannot be read .*: delete the file to measure it again"):
        Profile.load(path, "mark")
