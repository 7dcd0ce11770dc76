"""Sensitivity profile: what every size of every site costs by itself, in closed form, corrected where it was measured."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spaces.errors import CheckpointError, DataError
from spaces.factors import Factors
from spaces.files import write_json
from spaces.schema import SIZE, TEXT, WHOLE, Each, Kind, check, read_json
from spaces.sites import Site, Space
from spaces.statistics import has_classes, outputs_of

Errors = Mapping[str, Mapping[int, float]]

SIZES = 3
_FORMAT = 1
_ERROR = Kind("a number of nats, 0 or more", lambda value: isinstance(value, int | float) and 0 <= value < 1e18)
# Sizes whose closed-form error is below this share of their site's largest are not measured: no budget is decided there.
_NEGLIGIBLE = 0.01
# Largest |log(measured / closed form)| that is believed: beyond it a divergence is numerical noise, or zero.
_CLAMP = 3.0


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Errors of every size of every site, other sites dense, in nats of divergence from the dense model.

    In a model without classes: half the squared change of the features, summed over an image.

    Attributes:
        closed: site name -> size -> closed-form error (`Factors.error`).
        measured: site name -> size -> mean divergence, at the sizes that were measured; no site where `images` is 0.
        images: calibration images that were measured on.
        sizes: at most so many sizes of a site were measured.
    """

    closed: Errors
    measured: Errors
    images: int
    sizes: int = SIZES

    @cached_property
    def errors(self) -> Errors:
        """Site name -> size -> closed-form error times measured over closed form.

        This ratio is a line in the logarithm of the closed-form error between the measured sizes, and constant outside. Errors
        never grow with the size and are 0 at the dense one.
        """
        return {name: _corrected(closed, self.measured.get(name, {})) for name, closed in self.closed.items()}

    def save(self, path: Path, fingerprint: str) -> None:
        """Write it atomically as JSON; the corrected errors follow from the rest."""
        write_json(path, {"format": _FORMAT, "fingerprint": fingerprint, **asdict(self)})

    @classmethod
    def load(cls, path: Path, fingerprint: str, space: Space | None = None) -> "Profile | None":
        """Inverse of `save`; None where the file is of another format or of other factors than `fingerprint`.

        Args:
            path: the file.
            fingerprint: of the factors.
            space: whose sites and sizes it must have, where that is known.

        Raises:
            CheckpointError: the file is unreadable.
        """
        try:
            content = read_json(path, {"format": WHOLE, "fingerprint": TEXT})
            if (content["format"], content["fingerprint"]) != (_FORMAT, fingerprint):
                return None
            errors = Each(Each(_ERROR))
            check(content, {"closed": errors, "measured": errors, "images": WHOLE, "sizes": SIZE})
            closed, measured = (_errors(content[name]) for name in ("closed", "measured"))
            _check_sites(closed, measured, space)
            return cls(closed=closed, measured=measured, images=content["images"], sizes=content["sizes"])
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"sensitivity profile {path} cannot be read ({error}): delete the file to measure it again"
            ) from error


def closed_form(factors: Factors) -> Errors:
    """Site name -> size -> closed-form error; nothing is measured."""
    return {site.name: factors.error(site) for site in factors.space.sites}


def profile_name(fingerprint: str) -> str:
    """Name of the file of a profile, in the folder of the factors that it was measured with."""
    return f"{fingerprint}.profile.json"


def measure_profile(
    factors: Factors,
    model: nn.Module,
    batches: Iterable[Tensor],
    progress: Callable[[int, int], None] = lambda done, total: None,
    sizes: int = SIZES,
) -> Profile:
    """The profile of a space, from a few sizes of every site with this site alone made smaller.

    Args:
        factors: of the space.
        model: the dense model of the factors, on the device to measure on.
        batches: calibration images, [B, C, H, W]; the same for all sizes. With none, nothing is measured.
        progress: called with (sizes done, sizes in all).
        sizes: how many of every site to measure.

    Raises:
        DataError: outputs that are not finite.
    """
    device = next(model.parameters()).device
    images = [batch.to(device) for batch in batches]
    closed = closed_form(factors)
    wanted = {name: informative(errors, sizes) if images else [] for name, errors in closed.items()}
    measured: dict[str, dict[int, float]] = {name: {} for name, chosen in wanted.items() if chosen}
    done, total = 0, sum(map(len, wanted.values()))
    if total:
        progress(done, total)
    with torch.inference_mode():
        dense = [outputs_of(model.eval(), batch) for batch in images]
        for block, sites in groupby((site for site in factors.space.sites if wanted[site.name]), key=_block):
            entering = _entering(model, block, images)
            for site in sites:
                for size in wanted[site.name]:
                    built = factors.build(factors.space.identity().replace({site.name: size})).to(device)
                    _resume(built, block, entering)
                    outputs = (outputs_of(built, batch) for batch in images)
                    measured[site.name][size] = divergence(outputs, dense, has_classes(model), f"{site.name} at {size}")
                    progress(done := done + 1, total)
    return Profile(closed=closed, measured=measured, images=sum(map(len, images)), sizes=sizes)


def informative(errors: Mapping[int, float], count: int) -> list[int]:
    """Sizes worth measuring: the smallest, and others whose errors are spaced evenly in logarithm down to a negligible one."""
    offered = [size for size, error in errors.items() if error > _NEGLIGIBLE * max(errors.values())]
    if not offered:
        return []
    logs = np.log([errors[size] for size in offered])
    return sorted({offered[int(np.abs(logs - level).argmin())] for level in np.linspace(logs[0], logs[-1], count)})


def _corrected(closed: Mapping[int, float], measured: Mapping[int, float]) -> dict[int, float]:
    """Closed-form errors of one site, corrected by its measured ones."""
    points = sorted((math.log(closed[size]), _log_ratio(value, closed[size])) for size, value in measured.items())
    levels, ratios = zip(*points, strict=True) if points else ((0.0,), (0.0,))
    corrected, largest = {}, 0.0
    for size, error in sorted(closed.items(), reverse=True):
        if error > 0:
            largest = max(largest, error * math.exp(np.interp(math.log(error), levels, ratios)))
        corrected[size] = largest
    return dict(sorted(corrected.items()))


def _log_ratio(measured: float, closed: float) -> float:
    return min(_CLAMP, max(-_CLAMP, math.log(measured / closed))) if measured > 0 else -_CLAMP


def divergence(outputs: Iterable[Tensor], dense: Sequence[Tensor], classes: bool, where: str) -> float:
    """Mean divergence of outputs from the dense model's, over all images."""
    total, count = 0.0, 0
    for found, expected in zip(outputs, dense, strict=True):
        found, expected = found.float().cpu().double(), expected.float().cpu().double()
        if classes:
            change = F.kl_div(found.log_softmax(-1), expected.log_softmax(-1), reduction="sum", log_target=True)
        else:
            change = (found - expected).square().sum() / 2
        total, count = total + float(change), count + len(found)
    if not math.isfinite(total):
        raise DataError(
            f"outputs with {where} are not finite on the calibration images: check the weights and the normalisation"
        )
    return total / count


class _Passed(nn.Module):
    """In place of a block before the one that a model is resumed at."""

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        return x


def _entering(model: nn.Module, block: int, images: Iterable[Tensor]) -> list[Tensor]:
    """What enters a block of the dense model, for every batch."""
    seen: list[Tensor] = []
    first = model.get_submodule(f"blocks.{block}")
    handle = first.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    try:
        for batch in images:
            model(batch)
    finally:
        handle.remove()
    return seen


def _resume(model: nn.Module, block: int, entering: Iterable[Tensor]) -> None:
    """Have the next forward passes of a model begin at a block, with what enters it: all before it is as in the dense model."""
    stored = iter(entering)
    for index in range(block):
        model.set_submodule(f"blocks.{index}", _Passed())
    first = model.get_submodule(f"blocks.{block}")
    first.register_forward_pre_hook(lambda module, arguments: (next(stored), *arguments[1:]))


def _block(site: Site) -> int:
    return int(site.place[0])


def _errors(content: Mapping[str, Mapping[str, float]]) -> Errors:
    """Site name -> size -> error, of JSON, whose keys are text."""
    return {name: {int(size): float(error) for size, error in errors.items()} for name, errors in content.items()}


def _check_sites(closed: Errors, measured: Errors, space: Space | None) -> None:
    """Raise unless errors are those of sites, and of those of a space where it is known.

    Raises:
        ValueError: a site or a size is missing or unknown.
    """
    for name, sizes in measured.items():
        if any(closed.get(name, {}).get(size, 0) <= 0 for size in sizes):
            raise ValueError(f"measured.{name} has sizes without a closed-form error")
    sites = {} if space is None else {site.name: list(site.choices) for site in space.sites}
    if space is not None and {name: list(errors) for name, errors in closed.items()} != sites:
        raise ValueError("closed has not the sites and the sizes of the model")
