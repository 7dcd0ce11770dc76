"""A search's latency: what every size saves of the dense model's time, looked up in what was measured once."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from objectives.latency.config import LatencyConfig
from objectives.latency.units import Unit
from spaces.allocation import Allocation
from spaces.errors import RunError
from spaces.files import write_json
from spaces.operators.base import Sizes
from spaces.operators.registry import OPERATORS
from spaces.schema import FLAG, NUMBER, OBJECT, POSITIVE, SIZE, TEXT, Each, Kind, choice, read_json
from spaces.sites import Operator, Space

Floats = NDArray[np.float64]

LATENCY = "latency.json"  # in the run directory
_UNIT = {"operator": choice(*OPERATORS), "parts": [TEXT], "choices": [[SIZE]], "anchored": FLAG, "branches": [TEXT]}
_SAVED = Kind("numbers", lambda value: isinstance(value, list | float | int))
_SCHEMA = {
    "dense": POSITIVE,
    "grids": [{"unit": _UNIT, "regimes": Each({"axes": Each([SIZE]), "saved": _SAVED})}],
    "checks": [{"predicted": NUMBER, "measured": POSITIVE}],
    "fingerprint": TEXT,
    "config": {"latency_batch_size": SIZE, "latency_amp": FLAG, "latency_seconds": POSITIVE},
    "device": TEXT,
    "threads": SIZE,
    "clock": TEXT,
    "versions": OBJECT,
}


@dataclass(frozen=True)
class Grid:
    """What one branch saves at the sizes that were measured, and linearly in between.

    Attributes:
        axes: part -> ascending sizes.
        saved: at every combination, the share of the dense model's latency; negative where it takes longer. [sizes, ...]
    """

    axes: Mapping[str, tuple[int, ...]]
    saved: Floats
    _known: dict[tuple[int, ...], float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def at(self, sizes: Sizes) -> float:
        """What is saved at sizes by part, also a little beyond the axes."""
        point = tuple(sizes[part] for part in self.axes)
        if point not in self._known:
            self._known[point] = self._interpolated(point)
        return self._known[point]

    def _interpolated(self, point: Sequence[int]) -> float:
        free = [index for index, axis in enumerate(self.axes.values()) if len(axis) > 1]
        if not free:
            return float(self.saved.item())
        axes = list(self.axes.values())
        found = RegularGridInterpolator([axes[i] for i in free], self.saved.squeeze(), bounds_error=False, fill_value=None)
        return float(found([point[i] for i in free])[0])


@dataclass(frozen=True, kw_only=True)
class Check:
    """An allocation that the table was not made from: latency by the table, and measured, as shares of the dense model's."""

    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Of the table, relative."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Latency of every allocation of one space of one dense model, on one device.

    It is the dense model's, less what every branch saves: the same for everyone who reads the table.

    Attributes:
        dense: seconds of a call of the dense model.
        grids: of every unit, regime -> its grid.
        checks: how well it predicts.
        fingerprint: of the model and the space.
        config: how it was measured.
        device: where.
        threads: of torch on the CPU.
        clock: wall, or cpu where the time of the only thread was taken, in which other processes have no part.
        versions: of what it was measured with.
    """

    dense: float
    grids: tuple[tuple[Unit, dict[str, Grid]], ...]
    checks: tuple[Check, ...]
    fingerprint: str
    config: LatencyConfig
    device: str
    threads: int
    clock: str
    versions: Mapping[str, str]
    _units: dict[tuple[str, str], list[tuple[Unit, dict[str, Grid]]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for unit, grids in self.grids:
            for branch in unit.branches:
                self._units.setdefault((branch, unit.operator), []).append((unit, grids))

    def saved(self, operator: Operator, sizes: Sizes) -> float:
        """Seconds that one operator saves its branch at sizes by part; 0 for dense ones."""
        shares = (
            grids[unit.regime(sizes)].at(sizes)
            for unit, grids in self._units[operator.branch, operator.name]
            if not unit.is_dense(sizes)
        )
        return self.dense * sum(shares)

    def latency(self, space: Space, allocation: Allocation) -> float:
        """Seconds of a call of the model that `allocation` builds."""
        operators = (operator for rivals in space.branches.values() for operator in rivals if operator.moves(allocation))
        return self.dense - sum(self.saved(operator, operator.sizes(allocation)) for operator in operators)

    def check(self, space: Space) -> None:
        """Raise unless the table has a latency for every allocation of a space.

        Raises:
            ValueError: something is missing, or is of other sizes.
        """
        for operator in (operator for rivals in space.branches.values() for operator in rivals):
            units = self._units.get((operator.branch, operator.name), [])
            found = sorted((part, choices) for unit, _ in units for part, choices in zip(unit.parts, unit.choices, strict=True))
            if found != sorted((site.part, site.choices) for site in operator.sites):
                raise ValueError(f"it has not the sizes of {operator.branch}, {operator.name}")
        for unit, grids in self.grids:
            wanted = {regime: axes for regime in unit.regimes if (axes := unit.axes(regime))}
            if {regime: dict(grid.axes) for regime, grid in grids.items()} != wanted:
                raise ValueError(f"{unit.operator} of {unit.branches[0]} was not measured at the sizes of a table")

    @property
    def error(self) -> float:
        """Median over the checks of the relative error, without its sign."""
        return float(np.median([abs(check.error) for check in self.checks]))

    @property
    def text(self) -> str:
        """What a latency of this table is, in words."""
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}" if " cpu " in self.device else ""
        return f"{self.config.setting.text}, on {self.device}{threads}"

    def save(self, path: Path) -> None:
        """Write the table as JSON."""
        write_json(path, {
            "dense": self.dense,
            "grids": [
                {
                    "unit": asdict(unit),
                    "regimes": {name: {"axes": dict(grid.axes), "saved": grid.saved.tolist()} for name, grid in grids.items()},
                }
                for unit, grids in self.grids
            ],
            "checks": [{**asdict(check), "error": check.error} for check in self.checks],
            "fingerprint": self.fingerprint,
            "config": asdict(self.config),
            "device": self.device,
            "threads": self.threads,
            "clock": self.clock,
            "versions": dict(self.versions),
        })  # fmt: skip

    @classmethod
    def load(cls, path: Path, fingerprint: str | None = None, space: Space | None = None) -> "LatencyTable":
        """Inverse of `save`.

        Args:
            path: the file.
            fingerprint: of a model and a space, where they are known.
            space: that a table of this fingerprint must have all sizes of.

        Raises:
            RunError: it cannot be read.
        """
        try:
            content = read_json(path, _SCHEMA)
            grids = tuple((_unit(entry["unit"]), _grids(entry["regimes"])) for entry in content["grids"])
            checks = tuple(Check(predicted=entry["predicted"], measured=entry["measured"]) for entry in content["checks"])
            rest = {name: content[name] for name in ("dense", "fingerprint", "device", "threads", "clock", "versions")}
            table = cls(grids=grids, checks=checks, config=LatencyConfig(**content["config"]), **rest)
            if space is not None and table.fingerprint == fingerprint:
                table.check(space)
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"{path} cannot be read ({error}): restore it, since a run keeps its latencies") from error
        return table


def points_of(axes: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
    """All combinations of sizes, the last part's changing fastest; none where there are no axes."""
    return [] if not axes else [dict(zip(axes, sizes, strict=True)) for sizes in itertools.product(*axes.values())]


def _unit(entry: dict[str, Any]) -> Unit:
    choices = tuple(tuple(sizes) for sizes in entry["choices"])
    unit = Unit(**{**entry, "parts": tuple(entry["parts"]), "choices": choices, "branches": tuple(entry["branches"])})
    if len(unit.parts) != len(choices) or not unit.branches or not all(choices):
        raise ValueError(f"the unit of {unit.operator} has not sizes for each of its parts")
    return unit


def _grids(entries: dict[str, Any]) -> dict[str, Grid]:
    return {name: _grid(entry) for name, entry in entries.items()}


def _grid(entry: dict[str, Any]) -> Grid:
    axes = {part: tuple(sizes) for part, sizes in entry["axes"].items()}
    saved = np.array(entry["saved"], dtype=float)
    ascends = all(low < high for axis in axes.values() for low, high in itertools.pairwise(axis))
    if not ascends or saved.shape != tuple(map(len, axes.values())) or not np.isfinite(saved).all():
        raise ValueError(f"a grid over {', '.join(axes)} has not one finite number for every combination of ascending sizes")
    return Grid(axes, saved)
