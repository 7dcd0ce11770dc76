"""How frames are measured: schedules of tokens, and nested sets of branches that are left out."""

from collections.abc import Iterable
from functools import partial

from torch import Tensor, nn

from objectives.cost.closed_form import CostModel
from objectives.divergence import Reference
from objectives.dropping import measure_dropped
from objectives.frames import MeasuredFrames
from objectives.merging import measure_schedules
from objectives.narrowing import measure_widths
from objectives.runtime.progress import Progress
from objectives.sensitivity import closed_form
from spaces.factors import Factors


def measure_frames(
    factors: Factors,
    model: nn.Module,
    batches: Iterable[Tensor],
    costs: CostModel,
    progress: Progress = lambda what, done, total: None,
    tokens: bool = True,
    drop: bool = True,
) -> MeasuredFrames:
    """What schedules and sets of branches of a space lose.

    Args:
        factors: of the space.
        model: the dense model of the factors, on the device to measure on.
        batches: calibration images, [B, C, H, W]. With none, nothing is measured.
        costs: of the space.
        progress: called with ("tokens", schedules done, in all), then with ("branches", models done, in all) and
            ("widths", allocations done, in all).
        tokens: whether to measure schedules.
        drop: whether to measure sets of branches.

    Raises:
        DataError: outputs that are not finite.
    """
    reference = Reference(model, batches if tokens or drop else ())
    lossless = {factors.space.schedule(factors.space.lossless()): 0.0}
    if not reference.count:
        return MeasuredFrames(schedules=lossless, dropped={}, images=0)
    return MeasuredFrames(
        schedules=measure_schedules(factors, reference, costs, partial(progress, "tokens")) if tokens else lossless,
        dropped=measure_dropped(factors, reference, costs, partial(progress, "branches")) if drop else {},
        images=reference.count,
        widths=dict(measure_widths(factors, reference, closed_form(factors), costs, partial(progress, "widths"))),
    )
