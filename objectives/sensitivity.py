"""How the sensitivity profile is measured: one site is made smaller, and outputs are compared with the dense model's."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objectives.profile import SIZES, Errors, Profile
from spaces.errors import DataError
from spaces.factors import Factors
from spaces.sites import Site
from spaces.statistics import has_classes, outputs_of

# Sizes whose closed-form error is below this share of their site's largest are not measured: no budget is decided there.
_NEGLIGIBLE = 0.01


def closed_form(factors: Factors) -> Errors:
    """Site name -> size -> closed-form error; nothing is measured."""
    return {site.name: factors.error(site) for site in factors.space.sites}


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
