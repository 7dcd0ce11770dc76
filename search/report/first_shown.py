"""The first answer of a run as the page shows it: a table and a drawing for every cost that was asked about."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from objectives.cost.spec import Cost, known_costs, word_of
from objectives.units import format_divergence, format_kept
from search.report.trial_texts import MISSING
from search.run.first_answer import FirstAnswer, FirstPoint, bend_of, bend_text

WIDTH, HEIGHT = 560, 260  # of the drawing
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 14, 42  # its margins
_SHARES = (0, 20, 40, 60, 80, 100)  # percent that have a line


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
    """A point in the drawing: where it is, its text, and whether it is where the answer bends."""

    x: float
    y: float
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
        across, up: the grid: shares of the cost in percent, and divergences in nats, of which every step is ten times more.
    """

    word: str
    sentence: str
    images: int
    columns: tuple[str, ...]
    rows: tuple[FirstRow, ...]
    dots: tuple[Dot, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]


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
    bend = bend_of(points)
    drawn = [(100 * answer.kept(point, cost), point.divergence, point) for point in points if point.divergence]
    decades = _decades([divergence for _, divergence, _ in drawn])
    return FirstShown(
        word=word_of(cost),
        sentence=bend_text(points),
        images=answer.images,
        columns=first_columns(answer),
        rows=tuple(FirstRow(texts=first_texts(answer, point), is_bend=point is bend) for point in reversed(points)),
        dots=tuple(
            Dot(x=_across(share), y=_up(divergence, decades), text=_text(answer, point), is_bend=point is bend)
            for share, divergence, point in drawn
        )
        if len(drawn) > 1
        else (),
        across=tuple(Tick(at=_across(share), text=f"{share} %") for share in _SHARES),
        up=tuple(Tick(at=_up(10.0**decade, decades), text=f"{10.0**decade:g}") for decade in range(decades[0], decades[1] + 1)),
    )


def _text(answer: FirstAnswer, point: FirstPoint) -> str:
    return ", ".join(
        f"{column}: {text}" for column, text in zip(first_columns(answer), first_texts(answer, point), strict=True)
    )


def _decades(divergences: Sequence[float]) -> tuple[int, int]:
    """Powers of ten below the smallest and above the largest."""
    if not divergences:
        return -1, 0
    low = math.floor(math.log10(min(divergences)))
    return low, max(low + 1, math.ceil(math.log10(max(divergences))))


def _across(percent: float) -> float:
    return round(LEFT + percent / 100 * (WIDTH - LEFT - RIGHT), 1)


def _up(divergence: float, decades: tuple[int, int]) -> float:
    low, high = decades
    return round(TOP + (high - math.log10(divergence)) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)
