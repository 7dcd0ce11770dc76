"""Times at the sizes that were measured, and linearly in between."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spaces.schema import WHOLE, Each, Kind

Floats = NDArray[np.float64]

GRID = {
    "axes": Each([WHOLE]),
    "saved": Kind("numbers", lambda value: isinstance(value, list | float | int)),
}  # schema of a grid in a file


@dataclass(frozen=True)
class Grid:
    """A figure at the sizes that were measured, and linearly in between: mostly what one branch saves.

    Attributes:
        axes: part -> ascending sizes.
        saved: at every combination, as a share of the dense model's latency; negative where it takes longer. [sizes, ...]
    """

    axes: Mapping[str, tuple[int, ...]]
    saved: Floats
    _known: dict[tuple[float, ...], float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def at(self, sizes: Mapping[str, float]) -> float:
        """The figure at sizes by part, also a little beyond the axes."""
        point = tuple(sizes[part] for part in self.axes)
        if point not in self._known:
            self._known[point] = self._interpolated(point)
        return self._known[point]

    def _interpolated(self, point: Sequence[float]) -> float:
        free = [index for index, axis in enumerate(self.axes.values()) if len(axis) > 1]
        if not free:
            return float(self.saved.item())
        axes = list(self.axes.values())
        from scipy.interpolate import RegularGridInterpolator  # half a second to import, and needed by few

        found = RegularGridInterpolator([axes[i] for i in free], self.saved.squeeze(), bounds_error=False, fill_value=None)
        return float(found([point[i] for i in free])[0])

    def to_json(self) -> dict[str, Any]:
        """As `GRID` says."""
        return {"axes": dict(self.axes), "saved": self.saved.tolist()}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Grid":
        """Inverse of `to_json`.

        Raises:
            ValueError: there is not one number for every combination of sizes.
        """
        axes = {part: tuple(sizes) for part, sizes in entry["axes"].items()}
        saved = np.array(entry["saved"], dtype=float)
        ascends = all(low < high for axis in axes.values() for low, high in itertools.pairwise(axis))
        if not ascends or saved.shape != tuple(map(len, axes.values())) or not np.isfinite(saved).all():
            raise ValueError(
                f"a grid over {', '.join(axes)} has not one finite number for every combination of ascending sizes"
            )
        return cls(axes, saved)


def points_of(axes: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
    """All combinations of sizes, the last part's changing fastest; none where there are no axes."""
    return [] if not axes else [dict(zip(axes, sizes, strict=True)) for sizes in itertools.product(*axes.values())]
