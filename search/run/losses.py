"""Whether the tables of a run know trials that its journal or database lacks: written anew, they would lose them."""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import pandas as pd

from search.layout import SUMMARY, TRIALS
from search.run.summary_file import read_summary
from spaces.errors import RunError


def check_nothing_lost(directory: Path, numbers: Collection[int], where: str, remedy: str) -> None:
    """Raise where the tables of a run have trials that what it is continued from lacks.

    Args:
        directory: of the run.
        numbers: of the trials that the journal or the database has.
        where: names it.
        remedy: how it gets its trials back.

    Raises:
        RunError: trials were lost.
    """
    known, count = _numbers_in(directory)
    lost = sorted(known - set(numbers))
    missing = max(len(lost), count - len(numbers))
    if missing <= 0:
        return
    example = f", trial {lost[0]} for one" if lost else ""
    raise RunError(
        f"{where} lacks {missing} of the {max(count, len(known))} trials that the tables of {directory} have{example}: "
        f"{remedy}, or move {TRIALS} and {SUMMARY} away to go on with the {len(numbers)} trials that are left"
    )


def _numbers_in(directory: Path) -> tuple[set[int], int]:
    """Numbers of the trials that the tables know, and how many there are; a table that cannot be read says nothing."""
    known, count = set[int](), 0
    with suppress(OSError, RunError):
        summary = read_summary(directory)
        known |= {point.number for point in summary.front}
        count = sum(summary.states.values())
    with suppress(OSError, ValueError, OverflowError, KeyError):
        found = pd.to_numeric(pd.read_csv(directory / TRIALS, low_memory=False)["number"])
        known |= {int(number) for number in found.dropna()}
    return known, max(count, len(known))
