"""How far a preparation is."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
Progress = Callable[[str, int, int], None]  # what is being done, how much of it is done, of how much


def counted(what: str, batches: Iterable[T], images: int, batch: int, progress: Progress) -> Iterator[T]:
    """`batches` of so many images; reports how many have passed."""
    total = -(-images // batch)
    for done, entry in enumerate(batches, start=1):
        yield entry
        progress(what, done, max(done, total))
