"""Whether a file holds the model that was saved, from how far its outputs are on some images."""

import math

import pytest

from objectives.deploy.config import Dtype
from objectives.deploy.folder import check_outputs, judged
from spaces.errors import RunError

LARGEST = 8.0  # of the outputs before saving
ROUNDING, FLIPPED = 2e-6, 0.4  # differences: of another order of sums, and of another merging


def accepted(differences: list[float], merges: bool, dtype: Dtype = "fp32") -> bool:
    try:
        check_outputs({"file": "model.onnx", **judged(differences, dtype, LARGEST)}, LARGEST, merges)
    except RunError:
        return False
    return True


@pytest.mark.parametrize(("flipped", "merges", "taken"), [
    (0, False, True), (0, True, True), (1, False, False), (1, True, True), (8, True, True), (9, True, False), (32, True, False),
])  # fmt: skip
def test_few_images_may_differ_and_only_where_tokens_are_merged(flipped: int, merges: bool, taken: bool) -> None:
    assert accepted([FLIPPED] * flipped + [ROUNDING] * (32 - flipped), merges) == taken


@pytest.mark.parametrize("far", [2.1, math.inf, math.nan])
def test_no_image_may_be_far_off(far: float) -> None:
    """A quarter of the largest output, 2."""
    assert accepted([2.0, *[ROUNDING] * 31], merges=True)
    assert not accepted([far, *[ROUNDING] * 31], merges=True)
    assert not accepted([*[ROUNDING] * 31, far], merges=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-4), ("fp16", 0.16), ("bf16", 0.8)])
def test_the_tolerance_is_that_of_the_type(dtype: Dtype, tolerance: float) -> None:
    below, above = [0.99 * tolerance] * 32, [1.01 * tolerance] * 32
    assert accepted(below, merges=False, dtype=dtype)
    assert not accepted(above, merges=True, dtype=dtype)
    assert judged(below, dtype, LARGEST)["tolerance"] == pytest.approx(tolerance)


def test_what_is_told() -> None:
    entry = {"file": "model.pt2", **judged([FLIPPED, FLIPPED, ROUNDING, ROUNDING], "fp32", LARGEST)}
    assert (entry["max_output_difference"], entry["agreeing"]) == (FLIPPED, 0.5)
    with pytest.raises(RunError, match=r"model\.pt2 is not .* differ by up to 0\.4, and by more than 0\.0001 on 50% of them"):
        check_outputs(entry, LARGEST, merges=True)
