"""Progress after every trial, by hand."""

import pytest
from local_tables import ENDED, budget_of, finished, summary_of

from search.report.history import Progress, progress_of
from search.run.finished_trial import FinishedTrial

DENSE = {"macs": 100}
SUMMARY = summary_of(DENSE, targets=(budget_of(("macs", 60, "flops=60%")),))


def trial(number: int, error: float, macs: int, ended: str = ENDED) -> FinishedTrial:
    return finished(number, {"macs": macs}, DENSE, error=error, seconds=1800.0, ended=ended)


def test_volume_grows_by_what_a_trial_adds() -> None:
    """0.5 x 0.5 of the first; 0.2 x 0.3 more of a cheaper one below it; nothing of one that is dominated."""
    found = progress_of([trial(0, 0.5, 50), trial(1, 0.7, 30), trial(2, 0.8, 60)], SUMMARY)
    assert found.hypervolume == pytest.approx([0.25, 0.25 + 0.3 * 0.2, 0.31])
    assert found.trials == [1, 2, 3]


def test_best_is_of_those_within_the_target() -> None:
    found = progress_of([trial(0, 0.1, 100), trial(1, 0.5, 60), trial(2, 0.7, 30), trial(3, 0.4, 50)], SUMMARY)
    assert found.best == [None, 50.0, 50.0, 40.0]
    assert progress_of([trial(0, 0.1, 100)], summary_of(DENSE)).best == [10.0]


def test_trials_come_as_they_ended_and_hours_count_from_the_first_beginning() -> None:
    late, early = "2026-11-24T02:00:00+00:00", "2026-11-24T01:00:00+00:00"
    found = progress_of([trial(0, 0.5, 50, late), trial(1, 0.7, 30, early)], SUMMARY)
    assert found.hypervolume == pytest.approx([0.21, 0.31])
    assert found.hours == pytest.approx([0.5, 1.5])


def test_no_trial_has_no_progress() -> None:
    assert progress_of([], SUMMARY) == Progress(trials=[], hours=[], hypervolume=[], best=[])
