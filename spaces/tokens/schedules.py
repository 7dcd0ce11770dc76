"""Schedules that are worth measuring: how many patch tokens leave every block, by how many are merged and where.

A schedule is a tuple with the number of patch tokens that leave the attention of each block. No shape is best for all models,
image sizes and budgets, so some of each kind are offered.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from spaces.sites import Space

Schedule = tuple[int, ...]

_SHARES = (0.12, 0.25, 0.4, 0.55, 0.7, 0.85)  # of the patch tokens that are merged in all

# Name -> whether a block merges, of blocks from 0 (the first that may) to 1 (the last). Those that merge do it alike.
_SHAPES: dict[str, Callable[[float], bool]] = {
    "constant": lambda place: True,
    "early": lambda place: place <= 0.7,
    "middle": lambda place: 0.15 < place < 0.85,
    "late": lambda place: place >= 0.25,
    "second half": lambda place: place >= 0.5,
}
_CUTS = (4, 2, 1)  # blocks that merge, evenly apart from the first on, where few merge much


def schedules(space: Space) -> tuple[Schedule, ...]:
    """Some 20 to 50 schedules of a space, of which every one is valid; fewer where there are few tokens or blocks.

    In descending order of all tokens that leave blocks. The first one merges nothing, and where the output reads prefix tokens
    alone, no patch token leaves the last block in any of them. ``((),)`` where tokens cannot be merged.
    """
    if not space.tokens:
        return ((),)
    patches, tail = space.tokens[0].dense, space.tokens[-1].choices[0] == 0
    merging = len(space.tokens) - tail
    counts = {tuple(_counts(patches, share, merges)) for merges in _weights(merging) for share in _SHARES}
    found = {(*schedule, *((0,) if tail else ())) for schedule in counts | {(patches,) * merging}}
    return tuple(sorted(found, key=lambda schedule: (sum(schedule), schedule), reverse=True))


def _weights(blocks: int) -> Iterator[list[bool]]:
    """Which of some blocks merge, in every shape."""
    for shape in _SHAPES.values():
        yield [shape(block / max(1, blocks - 1)) for block in range(blocks)]
    for cuts in _CUTS:
        yield [block % -(-blocks // cuts) == 0 for block in range(blocks)]


def _counts(patches: int, share: float, merges: Sequence[bool]) -> Iterator[int]:
    """Tokens that leave each block: what a block cannot merge, since it would be more than half, the next ones do."""
    left, whole = patches, sum(merges)
    for merged in accumulate(merges):
        wanted = patches - round(patches * share * merged / whole) if whole else patches
        left = min(left, max(-(-left // 2), wanted))
        yield left
