"""What the figures of a run can tell, in words: the same ones on the page, in the terminal and in an export's card."""

from collections.abc import Iterator, Sequence

from objectives.units import format_interval, format_points
from search.evidence.intervals import Interval
from search.run.summary import Best, FrontPoint, RunSummary

BEST, TIED = "best", "≈"
MISSING = "–"

_FEW = 2000  # search images, below which more of them tell trials apart better than anything else
_LISTED = 6  # numbers of trials in a sentence


def expected_text(expected: Interval | None) -> str:
    """An expected error with its interval of 95 %; '–' where it is not known."""
    return MISSING if expected is None else format_interval(expected.mean, expected.low, expected.high)


def difference_text(difference: Interval) -> str:
    """A difference of two errors with its interval of 95 %, in points."""
    return format_points(difference.mean, difference.low, difference.high)


def mark_of(number: int, summary: RunSummary) -> str:
    """`BEST` for the best trial under some target, `TIED` for one that cannot be told apart from it, '' for others."""
    if number in summary.best:
        return BEST
    return TIED if tied_under(number, summary) else ""


def tied_under(number: int, summary: RunSummary) -> tuple[str, ...]:
    """The targets under which a trial cannot be told apart from the best one."""
    return tuple(under for under, best in _bests(summary) if number in best.tied)


def legend(summary: RunSummary) -> str | None:
    """What `TIED` means in a run; None where no trials are tied."""
    under = [under for under, best in _bests(summary) if best.tied]
    return f"{TIED} cannot be told apart from the best under {' or '.join(under)}" if under else None


def verdicts(summary: RunSummary) -> tuple[str, ...]:
    """Of every target that has a best trial, what is known of it: the gain over the warm start, ties, and what may help."""
    points = {point.number: point for point in summary.front}
    said = (_verdict(under, best, points.get(best.number), summary) for under, best in _bests(summary))
    return tuple(text for text in said if text)


def best_under(number: int, summary: RunSummary) -> tuple[str, ...]:
    """The targets under which a trial is the best."""
    return tuple(under for under, best in _bests(summary) if number == best.number)


def numbered(numbers: Sequence[int]) -> str:
    """'trial 3', 'trials 3 and 5', 'trials 1, 2, 3, 4, 5, 6 and 7 more'."""
    shown, more = list(map(str, numbers[:_LISTED])), len(numbers) - _LISTED
    last = [f"{more} more"] if more > 0 else [shown.pop()] if len(shown) > 1 else []
    return f"trial{'s' if len(numbers) > 1 else ''} {' and '.join([', '.join(shown), *last])}"


def _bests(summary: RunSummary) -> Iterator[tuple[str, Best]]:
    """The targets that have a best trial, as text, with that; none before a trial has ended."""
    found = zip(summary.targets, summary.bests, strict=False)
    return ((budget.text, best) for budget, best in found if best is not None)


def _verdict(under: str, best: Best, point: FrontPoint | None, summary: RunSummary) -> str:
    sentences = [sentence for sentence in (_gain(under, best), _ties(under, best, summary)) if sentence]
    if best.gained is not None and best.gained.holds_zero and (help_ := list(_help(best, point, summary))):
        sentences.append(f"What may help: {'; '.join(help_)}.")
    return " ".join(sentences)


def _gain(under: str, best: Best) -> str | None:
    """What the trials gained over the warm start."""
    if best.gained is None:
        return None
    start = f"the warm start, trial {best.start}"
    if best.number == best.start:
        return f"Under {under} no trial is better than {start}: the sizes that follow in closed form were the best."
    claim = f"Under {under} the trials gained {difference_text(best.gained)} of error over {start}"
    return f"{claim}: that cannot be told from chance." if best.gained.holds_zero else f"{claim}."


def _ties(under: str, best: Best, summary: RunSummary) -> str | None:
    """How many trials cannot be told apart, and which one was taken."""
    if not best.tied:
        return None
    images = f"On {summary.dense.images:,} search images " if summary.dense.images else ""
    count = f"{len(best.tied) + 1} of {best.among} finished trials under {under} cannot be told apart"
    why = "least expected error" if summary.prefer == "accurate" else "least cost"
    return f"{images}{count}: trial {best.number}, taken for its {why}, and {numbered(best.tied)}."


def _help(best: Best, point: FrontPoint | None, summary: RunSummary) -> Iterator[str]:
    """What may tell trials apart, or leave them something to gain, by what is known of the best one."""
    images = summary.dense.images
    if 0 < images < _FEW:
        yield f"more search images: with {4 * images:,}, differences are known about twice as well"
    if point is not None and point.steps and point.kept_step == point.steps:
        yield "a longer fine-tune (--steps): its last step had the best weights"
    if best.lost is not None and best.lost.low <= 0:
        yield "a lower target: the best trial cannot be told apart from the dense model, or is better"
    if best.number == best.start:
        yield "another space (--space)"
