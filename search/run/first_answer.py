"""first.json: what budgets cost before anything is fine-tuned, as values and as a file, and where that bends."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from objectives.cost.spec import COSTS, Cost, word_of
from search.layout import FIRST
from spaces.allocation import Allocation
from spaces.errors import RunError
from spaces.files import write_json
from spaces.schema import NUMBER, POSITIVE, SHARE, SIZE, TEXT, WHOLE, Each, Maybe, choice, read_json

READING = "a fine-tune wins some of it back where much is lost"  # what people are told with it

_COSTS = {f"{cost}?": POSITIVE for cost in COSTS}
_POINT = {
    "cost": choice(*COSTS), "share": SHARE, "allocation": Each(WHOLE), "costs": _COSTS, "predicted": NUMBER,
    "divergence": Maybe(NUMBER), "changed": Maybe(SHARE),
}  # fmt: skip
FIRST_SCHEMA = {"mark": TEXT, "images": SIZE, "dense": _COSTS, "points": [_POINT]}


@dataclass(frozen=True, kw_only=True)
class FirstPoint:
    """The allocation of least predicted error on a share of one cost, as built from the factors.

    Attributes:
        cost: that was bounded.
        share: of the dense model's, that it was to keep at most.
        allocation: its sizes.
        costs: cost -> figure, in the cost's unit.
        predicted: divergence from the dense model that the profile expects, in nats.
        divergence: measured as built, in nats; None where it could not be measured.
        changed: share of the images that are answered otherwise than by the dense model; likewise.
    """

    cost: Cost
    share: float
    allocation: Allocation
    costs: Mapping[Cost, float]
    predicted: float
    divergence: float | None
    changed: float | None


@dataclass(frozen=True, kw_only=True)
class FirstAnswer:
    """What budgets cost as built.

    Attributes:
        mark: of all that it depends on; another one, and it is to be made again.
        images: training images that it was measured on.
        dense: costs of the dense model.
        points: of every cost that was asked about, one after the other, each from the smallest share.
    """

    mark: str
    images: int
    dense: Mapping[Cost, float]
    points: tuple[FirstPoint, ...]

    @property
    def costs(self) -> tuple[Cost, ...]:
        """Those that points were made on, in their order."""
        return tuple(dict.fromkeys(point.cost for point in self.points))

    def along(self, cost: Cost) -> tuple[FirstPoint, ...]:
        """The points of one cost, from the smallest share."""
        return tuple(point for point in self.points if point.cost == cost)

    def kept(self, point: FirstPoint, cost: Cost) -> float:
        """What a point keeps of the dense model's cost."""
        return point.costs[cost] / self.dense[cost]


def bend_of(points: Sequence[FirstPoint]) -> FirstPoint | None:
    """Where the answers begin to change fast: the point farthest below the straight line between both ends.

    The line is that of the answers that change against the logarithm of the share that is kept (the knee of Satopaa et al.,
    "Finding a 'kneedle' in a haystack", 2011). None where no point lies below it: where there are fewer than three points that
    were measured, or where answers change at an even pace or ever more slowly.
    """
    shown = [(math.log(point.share), point.changed, point) for point in points if point.changed is not None]
    if len(shown) < 3:
        return None
    (left, high, _), (right, low, _) = shown[0], shown[-1]
    below = [high + (low - high) * (at - left) / (right - left) - changed for at, changed, _ in shown]
    depth, index = max((depth, index) for index, depth in enumerate(below))
    return shown[index][2] if depth > 1e-9 else None


def bend_text(points: Sequence[FirstPoint]) -> str:
    """Where it bends, in a sentence without a full stop."""
    bend = bend_of(points)
    if bend is None:
        return "it bends nowhere"
    return f"it bends at about {100 * bend.share:.0f} % of {word_of(bend.cost)}"


def write_first_answer(directory: Path, answer: FirstAnswer) -> None:
    """Write first.json atomically."""
    points = [{**asdict(point), "allocation": dict(point.allocation)} for point in answer.points]
    write_json(directory / FIRST, {**asdict(answer), "points": points})


def read_first_answer(directory: Path) -> FirstAnswer | None:
    """The first answer of a run; None before there was one.

    Raises:
        RunError: it cannot be read.
    """
    path = directory / FIRST
    try:
        return _answer(read_json(path, FIRST_SCHEMA))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(f"{path} cannot be read ({error}): remove it, and it is measured again") from error


def _answer(content: Mapping[str, Any]) -> FirstAnswer:
    dense = dict(content["dense"])
    return FirstAnswer(
        mark=content["mark"],
        images=content["images"],
        dense=dense,
        points=tuple(_point(entry, dense) for entry in content["points"]),
    )


def _point(entry: Mapping[str, Any], dense: Mapping[Cost, float]) -> FirstPoint:
    """One point; it must have the costs of the dense model, its own among them."""
    if entry["costs"].keys() != dense.keys() or entry["cost"] not in dense or not entry["share"]:
        raise ValueError("a point has other costs than the dense model")
    return FirstPoint(**{**{name: entry[name] for name in _POINT}, "allocation": Allocation(entry["allocation"])})
