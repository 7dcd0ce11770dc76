"""A search's latency: what every size saves of the dense model's time, looked up in what was measured once."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from objectives.latency.config import LatencyConfig
from objectives.latency.grid import GRID, Grid
from objectives.latency.tokens import TOKENS, TokenTimes, place_of
from objectives.latency.units import Unit
from spaces.allocation import Allocation
from spaces.errors import RunError
from spaces.files import write_json
from spaces.operators.base import Sizes
from spaces.operators.registry import OPERATORS
from spaces.schema import FLAG, NUMBER, OBJECT, POSITIVE, SIZE, TEXT, WHOLE, Each, Maybe, choice, read_json
from spaces.sites import Operator, Role, Space
from spaces.tokens.schedules import Schedule

LATENCY = "latency.json"  # in the run directory
_UNIT = {
    "operator": choice(*OPERATORS),
    "role": choice(*get_args(Role)),
    "parts": [TEXT],
    "choices": [[WHOLE]],
    "anchored": FLAG,
    "branches": [TEXT],
}
_SCHEMA = {
    "dense": POSITIVE,
    "grids": [{"unit": _UNIT, "regimes": Each(GRID)}],
    "tokens": Maybe(TOKENS),
    "checks": [{"predicted": NUMBER, "measured": POSITIVE}],
    "fingerprint": TEXT,
    "config": {"latency_batch_size": SIZE, "latency_amp": FLAG, "latency_seconds": POSITIVE},
    "device": TEXT,
    "threads": SIZE,
    "clock": TEXT,
    "versions": OBJECT,
}


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

    It is the dense model's within a schedule of tokens, less what every branch saves there: the same for everyone who reads
    the table.

    Attributes:
        dense: seconds of a call of the dense model.
        grids: of every unit, regime -> its grid: what one of its branches saves at all tokens, as a share of the dense model's
            latency, over the sizes of its parts.
        tokens: how all this follows the tokens of the blocks; None where tokens cannot be merged.
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
    tokens: TokenTimes | None
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

    def whole(self, schedule: Schedule) -> float:
        """Seconds of a call with all branches dense within a schedule; () where tokens cannot be merged."""
        return self.dense if self.tokens is None else self.dense * self.tokens.whole(schedule)

    def saved(self, schedule: Schedule, operator: Operator, sizes: Sizes) -> float:
        """Seconds that one operator saves its branch within a schedule at sizes by part; 0 for dense ones."""
        units = self._units[operator.branch, operator.name]
        shares = (grids[unit.regime(sizes)].at(sizes) for unit, grids in units if not unit.is_dense(sizes))
        return self.dense * self._stays(schedule, operator) * sum(shares)

    def latency(self, space: Space, allocation: Allocation) -> float:
        """Seconds of a call of the model that `allocation` builds."""
        schedule = space.schedule(allocation)
        saved = (self.saved(schedule, operator, operator.sizes(allocation)) for _, operator in space.moved(allocation))
        return self.whole(schedule) - sum(saved)

    def _stays(self, schedule: Schedule, operator: Operator) -> float:
        """Share that a schedule leaves of what an operator saves in its branch."""
        if self.tokens is None:
            return 1.0
        (unit, _), *_ = self._units[operator.branch, operator.name]
        return self.tokens.stays(unit.operator, unit.role, place_of(operator, schedule, self.tokens.counts[-1]))

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
            if any(space.roles.get(branch) != unit.role for branch in unit.branches):
                raise ValueError(f"{unit.branches[0]} is no {unit.role}")
        if (self.tokens is None) != (not space.tokens):
            raise ValueError(f"it has {'no ' if space.tokens else ''}times of tokens")
        if self.tokens is not None:
            self.tokens.check(space)

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
                {"unit": asdict(unit), "regimes": {name: grid.to_json() for name, grid in grids.items()}}
                for unit, grids in self.grids
            ],
            "tokens": None if self.tokens is None else self.tokens.to_json(),
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
            tokens = None if content["tokens"] is None else TokenTimes.from_json(content["tokens"])
            checks = tuple(Check(predicted=entry["predicted"], measured=entry["measured"]) for entry in content["checks"])
            rest = {name: content[name] for name in ("dense", "fingerprint", "device", "threads", "clock", "versions")}
            table = cls(grids=grids, tokens=tokens, checks=checks, config=LatencyConfig(**content["config"]), **rest)
            if space is not None and table.fingerprint == fingerprint:
                table.check(space)
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"{path} cannot be read ({error}): restore it, since a run keeps its latencies") from error
        return table


def _unit(entry: dict[str, Any]) -> Unit:
    choices = tuple(tuple(sizes) for sizes in entry["choices"])
    unit = Unit(**{**entry, "parts": tuple(entry["parts"]), "choices": choices, "branches": tuple(entry["branches"])})
    if len(unit.parts) != len(choices) or not unit.branches or not all(choices):
        raise ValueError(f"the unit of {unit.operator} has not sizes for each of its parts")
    return unit


def _grids(entries: Mapping[str, Any]) -> dict[str, Grid]:
    return {name: Grid.from_json(entry) for name, entry in entries.items()}
