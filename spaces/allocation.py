"""Allocation: one size for every site of a space; the point that the search moves."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from spaces.errors import AllocationError, shown
from spaces.schema import parse_json


@dataclass(frozen=True)
class Allocation(Mapping[str, int]):
    """An immutable, hashable map from site name to size.

    Whether the sizes are legal is the space's to say (`Space.validate`). Two allocations are equal when they
    hold the same sizes, whatever the order in which the sites were given.

    Raises:
        AllocationError: a size is not a whole number, 0 or more.
    """

    pairs: tuple[tuple[str, int], ...]

    def __init__(self, sizes: Mapping[str, int]) -> None:
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 0:
                raise AllocationError(f"size of {name[:100]} must be a whole number, 0 or more, got {shown(size)}")
        object.__setattr__(self, "pairs", tuple(sorted(sizes.items(), key=lambda item: _natural(item[0]))))
        object.__setattr__(self, "_sizes", dict(self.pairs))

    def __getitem__(self, name: str) -> int:
        return self._sizes[name]  # type: ignore[attr-defined, no-any-return]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.pairs)

    def __hash__(self) -> int:
        return hash(self.pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Allocation) and self.pairs == other.pairs

    def __repr__(self) -> str:
        return f"Allocation({dict(self.pairs)!r})"

    def replace(self, sizes: Mapping[str, int]) -> "Allocation":
        """A copy with some sizes changed.

        Raises:
            AllocationError: `sizes` names a site that this allocation does not have.
        """
        unknown = sorted(set(sizes) - set(self))
        if unknown:
            raise AllocationError(f"unknown site {unknown[0]!r}; this allocation has {', '.join(self)}")
        return Allocation({**self, **sizes})

    def to_json(self) -> str:
        """JSON object, site name to size, in model order."""
        return json.dumps(dict(self))

    @classmethod
    def from_json(cls, text: str) -> "Allocation":
        """Inverse of `to_json`.

        Raises:
            AllocationError: not a JSON object of whole numbers.
        """
        try:
            sizes = parse_json(text)
        except ValueError as error:
            raise AllocationError(f"allocation is not JSON: {error}") from error
        if not isinstance(sizes, dict):
            raise AllocationError(f"allocation must be a JSON object, got {type(sizes).__name__}")
        return cls(sizes)


@lru_cache(4096)  # a run makes many allocations of the same few names
def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key that puts block 2 before block 10."""
    return tuple(
        (0, int(part)) if part.isascii() and part.isdigit() and len(part) < 10 else (1, part) for part in name.split(".")
    )
