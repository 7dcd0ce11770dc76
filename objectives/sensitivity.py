"""How the sensitivity profile is measured: one site is made smaller, and outputs are compared with the dense model's."""

from collections.abc import Callable, Iterable, Mapping
from itertools import groupby

import numpy as np
from torch import Tensor, nn

from objectives.divergence import Reference
from objectives.profile import SIZES, Errors, Profile
from spaces.factors import Factors
from spaces.sites import Site

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
    reference, closed = Reference(model, batches), closed_form(factors)
    wanted = {name: informative(errors, sizes) if reference.count else [] for name, errors in closed.items()}
    measured: dict[str, dict[int, float]] = {name: {} for name, chosen in wanted.items() if chosen}
    done, total = 0, sum(map(len, wanted.values()))
    if total:
        progress(done, total)
    for block, sites in groupby((site for site in factors.space.sites if wanted[site.name]), key=_block):
        for site in sites:
            for size in wanted[site.name]:
                built = factors.build(factors.space.identity().replace({site.name: size}))
                measured[site.name][size] = reference.divergence(built, f"{site.name} at {size}", block)
                progress(done := done + 1, total)
    return Profile(closed=closed, measured=measured, images=reference.count, sizes=sizes)


def informative(errors: Mapping[int, float], count: int) -> list[int]:
    """Sizes worth measuring: the smallest, and others whose errors are spaced evenly in logarithm down to a negligible one."""
    offered = [size for size, error in errors.items() if error > _NEGLIGIBLE * max(errors.values())]
    if not offered:
        return []
    logs = np.log([errors[size] for size in offered])
    return sorted({offered[int(np.abs(logs - level).argmin())] for level in np.linspace(logs[0], logs[-1], count)})


def _block(site: Site) -> int:
    return int(site.place[0])
