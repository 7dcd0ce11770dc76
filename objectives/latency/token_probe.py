"""What is timed to know how latencies follow from tokens, and what is made of it.

Whole models run all their blocks on some number of patch tokens: dense, and with what every operator saves most. A few
schedules then tell what merging itself takes.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from objectives.latency.grid import Floats, Grid
from objectives.latency.samples import some_schedules
from objectives.latency.smoothing import smoothed
from objectives.latency.tokens import AXIS, PARTS, TokenTimes
from objectives.latency.units import Unit
from objectives.latency.variants import Variant
from spaces.allocation import Allocation
from spaces.sites import DROP, Space

_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the patch tokens

Group = tuple[str, str]  # operator, role of its branches


class TokenProbe:
    """The measurement of `TokenTimes`.

    Args:
        space: whose tokens can be merged.
        units: of it.
        prefix: tokens of the model that are none of patches.

    Attributes:
        variants: what to time, in this order.
    """

    def __init__(self, space: Space, units: Sequence[Unit], prefix: int) -> None:
        self._space, patches = space, space.tokens[0].dense
        least = 0 if prefix else 1
        self._counts = tuple(sorted({max(least, round(share * patches)) for share in _SHARES}))
        self._groups: dict[Group, list[Unit]] = {}
        for unit in units:
            self._groups.setdefault((unit.operator, unit.role), []).append(unit)
        self._schedules = some_schedules(space)
        whole = [space.identity(), *(self._smallest(group) for group in self._groups.values())]
        self.variants = [Variant(allocation, count) for allocation in whole for count in self._counts]
        self.variants += [Variant(space.identity().replace(space.scheduled(entry))) for entry in self._schedules]

    def times(self, kept: Sequence[float], noise: float) -> TokenTimes:
        """What the times of the variants say.

        Args:
            kept: of each, as a share of the dense model's.
            noise: standard error of these.
        """
        curves = np.array(kept[: len(kept) - len(self._schedules)]).reshape(-1, len(self._counts))
        saved = dict(zip(self._groups, (self._rising(curves[0] - cut, noise) for cut in curves[1:]), strict=True))
        nothing = np.zeros(len(self._counts))
        attention, ffn = (saved.get((DROP, role), nothing) for role in PARTS[:2])
        blocks = attention, ffn, self._rising(curves[0] - attention - ffn, noise)
        times = TokenTimes(
            blocks={part: self._grid(curve) for part, curve in zip(PARTS, blocks, strict=True)},
            saved={group: self._grid(self._share(curve)) for group, curve in saved.items()},
            reading=0.0,
            merging=0.0,
            matched=0.0,
            weighed=0.0,
        )
        return _with_merging(times, self._schedules, kept[len(kept) - len(self._schedules) :])

    def _smallest(self, units: Sequence[Unit]) -> Allocation:
        """All branches of an operator at their smallest sizes."""
        sizes = {
            f"{branch}.{part}": choices[0]
            for unit in units
            for part, choices in zip(unit.parts, unit.choices, strict=True)
            for branch in unit.branches
        }
        return self._space.identity().replace(sizes)

    def _rising(self, curve: Floats, noise: float) -> Floats:
        """A time over the tokens, without its noise: more tokens take longer."""
        return -smoothed({AXIS: self._counts}, -curve, noise)

    def _share(self, saved: Floats) -> Floats:
        """Of what is saved at all tokens; where that is nothing, of tokens."""
        whole = saved[-1]
        share = np.maximum(saved, 0.0) / whole if whole > 0 else np.array(self._counts) / self._counts[-1]
        return np.asarray(share, dtype=float)

    def _grid(self, curve: Floats) -> Grid:
        return Grid({AXIS: self._counts}, curve)


def _with_merging(times: TokenTimes, known: Sequence[tuple[int, ...]], kept: Sequence[float]) -> TokenTimes:
    """The same with what merging takes, and what prefix tokens alone take that read all: by least squares, none below 0."""
    left = np.array(kept) - [times.whole(schedule) for schedule in known]
    reading = replace(times, reading=1.0)
    rows = [(reading.whole(each) - times.whole(each), *times.added(each)) for each in known]
    from scipy.optimize import nnls  # half a second to import, and needed by few

    share, merging, matched, weighed = nnls(np.array(rows, dtype=float), left)[0].tolist()
    return replace(times, reading=min(1.0, share), merging=merging, matched=matched, weighed=weighed)
