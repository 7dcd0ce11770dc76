"""What merging tokens costs: the divergence of every schedule of the library, all widths dense."""

from collections.abc import Callable, Mapping

from objectives.cost.closed_form import CostModel
from objectives.cost.spec import MAIN
from objectives.divergence import Reference
from spaces.factors import Factors
from spaces.tokens.schedules import Schedule, schedules

# A schedule is left out where another one that costs no more has less than this share of its divergence. Some that are a
# little worse stay: what is best beside narrower widths need not be best beside dense ones.
_WORSE = 0.8


def measure_schedules(
    factors: Factors, reference: Reference, costs: CostModel, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[Schedule, float]:
    """Schedule -> mean divergence from the dense model of the one that merges tokens so, of schedules that are worth it.

    They are in descending order of MACs. The first one loses nothing; it is the only one where tokens cannot be merged.

    Args:
        factors: of a space.
        reference: the dense model of the factors on some images.
        costs: of the space.
        progress: called with (schedules done, schedules in all).
    """
    space = factors.space
    first, *others = schedules(space)
    found = {first: 0.0}
    if others:
        progress(0, len(others))
    for done, schedule in enumerate(sorted(others, key=lambda schedule: _begins(schedule, first)), start=1):
        built = factors.build(space.lossless().replace(space.scheduled(schedule)))
        where = f"tokens merged to {', '.join(map(str, schedule))}"
        found[schedule] = max(0.0, reference.divergence(built, where, _begins(schedule, first)))
        progress(done, len(others))
    return worthwhile(found, {schedule: costs.within(schedule).base[MAIN.name] for schedule in found})


def worthwhile(divergences: Mapping[Schedule, float], macs: Mapping[Schedule, float]) -> dict[Schedule, float]:
    """Those of some schedules that no other one beats clearly, in descending order of MACs."""
    kept: dict[Schedule, float] = {}
    least = float("inf")
    for schedule in sorted(divergences, key=lambda schedule: (macs[schedule], divergences[schedule], schedule)):
        if least > _WORSE * divergences[schedule] or not kept:
            kept[schedule] = divergences[schedule]
        least = min(least, divergences[schedule])
    return dict(reversed(kept.items()))


def _begins(schedule: Schedule, lossless: Schedule) -> int:
    """The first block that merges tokens."""
    return next(block for block, counts in enumerate(zip(schedule, lossless, strict=True)) if counts[0] != counts[1])
