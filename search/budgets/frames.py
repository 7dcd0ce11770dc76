"""What widths are chosen inside: a schedule of merged tokens, and the branches that are left out.

Both act on all other sites: tokens multiply what every width costs, and a branch that is left out has none. So neither is one
more option of a branch. A frame is a pair of both; its divergence was measured, and the knapsack is solved inside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, IntDistribution

from objectives.frames import MeasuredFrames
from objectives.profile import Errors
from spaces.allocation import Allocation
from spaces.sites import DROP, Space

Floats = NDArray[np.float64]

_TINY = 1e-12  # nats
SCHEDULE, DROPPED = "schedule", "dropped"  # what samplers call the two parts of a frame


@dataclass(frozen=True, kw_only=True)
class Frames:
    """The frames of a search, numbered: every schedule with every number of branches that are left out.

    Frame 0 has the first schedule, which loses nothing, and all branches.

    Attributes:
        schedules: patch tokens that leave the attention of every block, the most first; an empty one where none are merged.
        divergences: of the schedules with dense widths, in nats.
        dropped: paths of branches, in the order in which they are left out.
        lost: divergence of leaving out the first of them, the first two, and so on, measured together, in nats.
        totals: of the errors of some widths by the profile, ascending; what was measured of the same widths is in `measured`.
        measured: their divergences, in nats.
    """

    schedules: tuple[tuple[int, ...], ...] = ((),)
    divergences: tuple[float, ...] = (0.0,)
    dropped: tuple[str, ...] = ()
    lost: tuple[float, ...] = ()
    totals: tuple[float, ...] = ()
    measured: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.schedules) * (len(self.dropped) + 1)

    def parts(self, frame: int) -> tuple[int, int]:
        """Index of the schedule, and how many branches are left out."""
        return divmod(frame, len(self.dropped) + 1)

    @cached_property
    def features(self) -> Floats:
        """Divergences of the two parts of every frame, [frames, parts]; of those parts that there is a choice of."""
        schedule, dropped = np.divmod(np.arange(len(self)), len(self.dropped) + 1)
        columns = {SCHEDULE: np.array(self.divergences)[schedule], DROPPED: np.array([0.0, *self.lost])[dropped]}
        return np.array([columns[name] for name in self.ranges]).reshape(len(self.ranges), len(self)).T

    def divergence_of(self, totals: Floats) -> Floats:
        """What widths lose with all tokens and branches, expected from the totals of their errors by the profile.

        The ratio of both is a line in the logarithm of the total between the widths that were measured, constant outside.
        """
        if not self.totals:
            return totals
        logarithms = np.log(np.maximum(totals, _TINY))
        scaled: Floats = totals * np.exp(
            np.interp(logarithms, np.log(self.totals), np.log(np.divide(self.measured, self.totals)))
        )
        return scaled

    @cached_property
    def ranges(self) -> dict[str, int]:
        """Parts that there is a choice of, with the largest index of each."""
        largest = {SCHEDULE: len(self.schedules) - 1, DROPPED: len(self.dropped)}
        return {name: last for name, last in largest.items() if last}

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna distributions of the parts that there is a choice of."""
        return {name: IntDistribution(0, last) for name, last in self.ranges.items()}

    def named(self, frame: int) -> dict[str, int]:
        """A frame as parameters."""
        parts = dict(zip((SCHEDULE, DROPPED), map(int, self.parts(frame)), strict=True))
        return {name: parts[name] for name in self.ranges}

    def of(self, parameters: Mapping[str, Any]) -> int:
        """The frame of some parameters."""
        return int(parameters.get(SCHEDULE, 0)) * (len(self.dropped) + 1) + int(parameters.get(DROPPED, 0))

    def sizes(self, space: Space, frame: int) -> dict[str, int]:
        """Sizes of the sites of tokens and of branches."""
        schedule, dropped = self.parts(frame)
        gone = {site.name: 0 for branch in self.dropped[:dropped] for site in _drop_sites(space, branch)}
        return {**gone, **(space.scheduled(self.schedules[schedule]) if space.tokens else {})}

    def base(self, space: Space, frame: int) -> Allocation:
        """The allocation of a frame with all widths dense."""
        return space.identity().replace(self.sizes(space, frame))


def frames_of(measured: MeasuredFrames, errors: Errors, tokens: bool = True, drop: bool = True) -> Frames:
    """The frames of a search.

    Args:
        measured: what each loses.
        errors: site name -> size -> error, by the profile.
        tokens: whether schedules are searched; without, tokens are left alone but for what is free.
        drop: whether leaving out branches is searched.
    """
    schedules, dropped = list(measured.schedules.items()), dict(measured.dropped) if drop else {}
    (counts, divergences) = zip(*(schedules if tokens else schedules[:1]), strict=True)
    pairs = sorted((_total(allocation, errors), divergence) for allocation, divergence in measured.widths.items())
    known = [(total, divergence) for total, divergence in pairs if min(total, divergence) > _TINY]
    return Frames(
        schedules=counts,
        divergences=divergences,
        dropped=tuple(dropped),
        lost=tuple(dropped.values()),
        totals=tuple(total for total, _ in known),
        measured=tuple(divergence for _, divergence in known),
    )


def _total(allocation: Allocation, errors: Errors) -> float:
    return sum(errors[name][size] for name, size in allocation.items() if name in errors)


def _drop_sites(space: Space, branch: str) -> Sequence[Any]:
    return [site for operator in space.branches[branch] if operator.name == DROP for site in operator.sites]
