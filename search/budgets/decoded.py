"""What parameters were decoded to, kept so that each is decoded once: rows of arrays that grow."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.budgets.options import Floats, Indices

Key = tuple[Any, ...]  # values of all parameters, in one order


@dataclass(frozen=True, eq=False)
class Decoded:
    """What parameters stand for.

    Attributes:
        chosen: the knapsack's options of their allocations, [rows, branches].
        frames: that these are inside of, [rows].
        multipliers: logarithms, [rows, sites].
        features: errors by the profile of the sites, and of the parts of frames, [rows, sites + parts].
        loads: how much the allocations use of every target, [rows, targets].
    """

    chosen: Indices
    frames: Indices
    multipliers: Floats
    features: Floats
    loads: Floats


class DecodedRows:
    """Rows by the values of their parameters."""

    def __init__(self) -> None:
        self._places: dict[Key, int] = {}
        self._columns: list[NDArray[Any]] = []  # of `Decoded`, with room for rows to come

    def places(self, keys: Iterable[Key]) -> list[int | None]:
        """Which row each key has; None where it has none."""
        return [self._places.get(key) for key in keys]

    def add(self, keys: Sequence[Key], rows: Decoded) -> None:
        """Keep a row for each of some keys that have none."""
        filled, columns = len(self._places), (rows.chosen, rows.frames, rows.multipliers, rows.features, rows.loads)
        if not self._columns:
            self._columns = [column[:0] for column in columns]
        if filled + len(keys) > len(self._columns[0]):
            more = [np.empty((filled + len(keys), *column.shape[1:]), column.dtype) for column in columns]  # at least as many
            self._columns = [np.concatenate(pair) for pair in zip(self._columns, more, strict=True)]
        for column, new in zip(self._columns, columns, strict=True):
            column[filled : filled + len(keys)] = new
        self._places.update(zip(keys, range(filled, filled + len(keys)), strict=True))

    def take(self, places: Sequence[Any]) -> Decoded:
        """Some rows."""
        rows = np.array(places)
        return Decoded(*(column[rows] for column in self._columns))
