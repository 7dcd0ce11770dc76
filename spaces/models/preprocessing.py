"""What of a model's preprocessing makes no sense, in words."""

from collections.abc import Mapping
from typing import Any

from spaces.errors import shown

WIDEST = 4096  # pixels: no vision transformer takes wider images
_CROP = (0.1, 10.0)  # an image is resized to the model's size divided by this
_CROPS = ("center", "squash", "border")  # timm's
_FILTERS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
_FAR = 1e6


def preprocessing_problem(given: Mapping[str, Any]) -> str | None:
    """What is wrong with a preprocessing, in the names of timm's pretrained_cfg; None where it can be used."""
    size = given.get("input_size")
    if not isinstance(size, list) or len(size) != 3 or not all(is_a(value, int) and value > 0 for value in size):
        return f"input_size must be three positive numbers, got {shown(size)}"
    for key, least, most in (("mean", -_FAR, _FAR), ("std", 1 / _FAR, _FAR)):
        values = given.get(key)
        if not isinstance(values, list) or len(values) != size[0] or not all(is_number(value, least, most) for value in values):
            return f"{key} must be {size[0]} numbers from {least:g} to {most:g}, got {shown(values)}"
    if not is_number(given.get("crop_pct"), *_CROP):
        return f"crop_pct must be a number from {_CROP[0]:g} to {_CROP[1]:g}, got {shown(given.get('crop_pct'))}"
    for key, known in (("interpolation", _FILTERS), ("crop_mode", _CROPS)):
        if given.get(key) not in known:
            return f"{key} must be one of {', '.join(known)}, got {shown(given.get(key))}"
    return None


def is_a(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def is_number(value: object, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
