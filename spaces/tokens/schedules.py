"""Schedules that are worth measuring: how many patch tokens leave every block, by how many are merged and where.

A schedule is a tuple with the number of patch tokens that leave the attention of each block. No shape is best for all models,
image sizes and budgets, so some of each kind are offered.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from spaces.sites import Space

Schedule = tuple[int, ...]

_SHARES = (0.12, 0.24, 0.36, 0.48, 0.6, 0.72, 0.84)  # of the patch tokens that are merged in all

# Name -> how much a block merges beside the others; blocks are at 0 (the first that may merge) to 1 (the last).
_SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda place: 1.0,
    "falling": lambda place: 1.0 - 5 / 6 * place,
    "rising": lambda place: 1 / 6 + 5 / 6 * place,
    "early": lambda place: float(place <= 0.7),
    "late": lambda place: float(place >= 0.3),
    "middle": lambda place: float(0.15 < place < 0.85),
}
_CUTS = 4  # blocks that merge, where few merge much


def schedules(space: Space) -> tuple[Schedule, ...]:
    """Some 20 to 50 schedules of a space, of which every one is valid; fewer where there are few tokens or blocks.

    In descending order of all tokens that leave blocks. The first one merges nothing, and where the output reads prefix tokens
    alone, no patch token leaves the last block in any of them. ``((),)`` where tokens cannot be merged.
    """
    if not space.tokens:
        return ((),)
    patches, tail = space.tokens[0].dense, space.tokens[-1].choices[0] == 0
    merging = len(space.tokens) - tail
    counts = {tuple(_counts(patches, share, weights)) for weights in _weights(merging) for share in _SHARES}
    found = {(*schedule, *((0,) if tail else ())) for schedule in counts | {(patches,) * merging}}
    return tuple(sorted(found, key=lambda schedule: (sum(schedule), schedule), reverse=True))


def _weights(blocks: int) -> Iterator[list[float]]:
    """How much each of some blocks merges, in every shape."""
    for shape in _SHAPES.values():
        yield [shape(block / max(1, blocks - 1)) for block in range(blocks)]
    apart = -(-blocks // _CUTS)
    yield [float(apart > 0 and block % apart == 0) for block in range(blocks)]


def _counts(patches: int, share: float, weights: Sequence[float]) -> Iterator[int]:
    """Tokens that leave each block: what a block cannot merge, since it would be more than half, the next ones do."""
    left, whole = patches, sum(weights)
    for merged in accumulate(weights):
        wanted = patches - round(patches * share * merged / whole) if whole else patches
        left = min(left, max(-(-left // 2), wanted))
        yield left
