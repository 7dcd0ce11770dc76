"""How far a preparation is."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
Progress = Callable[[str, int, int], None]  # what is being done, how much of it is done, of how much


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimiser step: its number from 1, the loss before it, and the learning rate."""

    step: int
    loss: float
    lr: float


def counted(what: str, batches: Iterable[T], images: int, batch: int, progress: Progress) -> Iterator[T]:
    """`batches` of so many images; reports how many have passed, of those before the first one on."""
    total = max(1, -(-images // batch))
    progress(what, 0, total)
    for done, entry in enumerate(batches, start=1):
        yield entry
        progress(what, done, max(done, total))


@contextmanager
def told_steps(what: str, steps: int, progress: Progress) -> Iterator[Callable[[Step], None]]:
    """Give what reports a fine-tune's optimiser steps; the last one when the block ends: the model is measured after it."""
    total = max(1, steps)
    progress(what, 0, total)

    def on_step(step: Step) -> None:
        if step.step < total:
            progress(what, step.step, total)

    yield on_step
    progress(what, total, total)
