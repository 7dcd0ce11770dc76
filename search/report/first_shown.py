"""The first answer of a run as the page shows it: a table and a drawing for every cost that was asked about."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from objectives.cost.spec import Cost, known_costs, word_of
from objectives.units import format_divergence, format_kept
from search.report.verdict import MISSING
from search.run.first_answer import FirstAnswer, FirstPoint, bend_of, bend_text

WIDTH, HEIGHT = 560, 260  # of the drawing
LEFT, RIGHT, TOP, BOTTOM = 62, 64, 14, 42  # its margins
_SHARES = (1, 2, 5, 10, 20, 50, 100)  # percent that have a line
_NOTHING = 1e-6  # nats, below which a divergence is drawn as this


@dataclass(frozen=True, kw_only=True)
class FirstRow:
    """A point: its texts by column, and whether it is where the answer bends."""

    texts: tuple[str, ...]
    is_bend: bool


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A line of the drawing's grid: where it is, and its text."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A point in the drawing.

    Attributes:
        x: where its share is.
        divergence, changed: heights of its divergence and of its answers that change, each on an axis of its own.
        text: its figures.
        is_bend: whether it is where the answer bends.
    """

    x: float
    divergence: float
    changed: float
    text: str
    is_bend: bool


@dataclass(frozen=True, kw_only=True)
class FirstShown:
    """The points of one cost.

    Attributes:
        word: of the cost.
        sentence: where it bends.
        images: that it was measured on.
        columns: of the table.
        rows: from the largest share.
        dots: of those that were measured, from the smallest share; none where there are too few to draw.
        across: ticks of the shares of the cost, a logarithmic axis.
        up: of the divergences, a logarithmic axis too.
        right: of the answers that change.
    """

    word: str
    sentence: str
    images: int
    columns: tuple[str, ...]
    rows: tuple[FirstRow, ...]
    dots: tuple[Dot, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    right: tuple[Tick, ...]


def first_shown(answer: FirstAnswer) -> tuple[FirstShown, ...]:
    """What the page shows of an answer, a cost after the other."""
    return tuple(_shown(answer, cost) for cost in answer.costs)


def first_columns(answer: FirstAnswer) -> tuple[str, ...]:
    """Titles of the columns of its tables."""
    kept = (f"keeps of {spec.word}" for spec in known_costs(answer.dense))
    return (*kept, "answers that change", "KL as built (nats)")


def first_texts(answer: FirstAnswer, point: FirstPoint) -> tuple[str, ...]:
    """A point by column."""
    kept = (format_kept(answer.kept(point, spec.name)) for spec in known_costs(answer.dense))
    changed = MISSING if point.changed is None else f"{100 * point.changed:.1f} %"
    return (*kept, changed, MISSING if point.divergence is None else format_divergence(point.divergence))


def _shown(answer: FirstAnswer, cost: Cost) -> FirstShown:
    points = answer.along(cost)
    bend, drawing = bend_of(points), _Drawing(answer, cost, [point for point in points if point.divergence is not None])
    return FirstShown(
        word=word_of(cost),
        sentence=bend_text(points),
        images=answer.images,
        columns=first_columns(answer),
        rows=tuple(FirstRow(texts=first_texts(answer, point), is_bend=point is bend) for point in reversed(points)),
        dots=tuple(drawing.dot(point, point is bend) for point in drawing.points),
        across=drawing.across,
        up=drawing.up,
        right=drawing.right,
    )


def _power(exponent: int) -> str:
    """A power of ten: '0.001', '1e-4'."""
    return f"{10.0**exponent:g}" if exponent > -4 else f"1e{exponent}"


class _Drawing:
    """Where the points of one cost are drawn; there are none where fewer than two were measured."""

    def __init__(self, answer: FirstAnswer, cost: Cost, measured: Sequence[FirstPoint]) -> None:
        self.points = measured if len(measured) > 1 else ()
        self._answer, self._cost = answer, cost
        shares = [100 * answer.kept(point, cost) for point in self.points] or [50.0]
        self._least = max((share for share in _SHARES if share <= min(shares)), default=min(shares))
        exponents = [math.log10(max(point.divergence or 0.0, _NOTHING)) for point in self.points] or [-1.0]
        self._low = math.floor(min(exponents))
        self._high = max(self._low + 1, math.ceil(max(exponents)))
        self._most = max(0.1, math.ceil(10 * max((point.changed or 0.0 for point in self.points), default=0.0)) / 10)

    def dot(self, point: FirstPoint, is_bend: bool) -> Dot:
        """One point."""
        texts = zip(first_columns(self._answer), first_texts(self._answer, point), strict=True)
        return Dot(
            x=self._x(100 * self._answer.kept(point, self._cost)),
            divergence=self._y(point.divergence or 0.0),
            changed=self._height((point.changed or 0.0) / self._most),
            text=", ".join(f"{column}: {text}" for column, text in texts),
            is_bend=is_bend,
        )

    @property
    def across(self) -> tuple[Tick, ...]:
        return tuple(Tick(at=self._x(share), text=f"{share} %") for share in _SHARES if share >= self._least)

    @property
    def up(self) -> tuple[Tick, ...]:
        return tuple(Tick(at=self._y(10.0**power), text=_power(power)) for power in range(self._low, self._high + 1))

    @property
    def right(self) -> tuple[Tick, ...]:
        return tuple(Tick(at=self._height(part), text=f"{100 * part * self._most:g} %") for part in (0, 0.5, 1))

    def _x(self, percent: float) -> float:
        part = math.log(percent / self._least) / math.log(100 / self._least)
        return round(LEFT + part * (WIDTH - LEFT - RIGHT), 1)

    def _y(self, divergence: float) -> float:
        return self._height((math.log10(max(divergence, _NOTHING)) - self._low) / (self._high - self._low))

    @staticmethod
    def _height(part: float) -> float:
        return round(HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM), 1)
