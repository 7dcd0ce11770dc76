"""What merging tokens and leaving out branches loses, measured: what widths are chosen inside."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MeasuredFrames:
    """Divergences from the dense model, in nats, with dense widths.

    Attributes:
        schedules: patch tokens that leave the attention of every block -> divergence; the most tokens first, and first of all
            the schedule that loses nothing.
        dropped: paths of branches in the order in which they are left out -> divergence without it and all before it.
        images: calibration images that were measured on.
    """

    schedules: Mapping[tuple[int, ...], float]
    dropped: Mapping[str, float]
    images: int
