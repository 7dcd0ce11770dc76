"""What a search shows while it runs, of one target and of several."""

from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from local_tables import bests_of, budget_of, pointed, summary_of
from rich.console import Console

from objectives.score import Score
from search.budgets.targets import Budget
from search.driver.outlook import Outlook
from search.evidence.intervals import Interval
from search.run.summary import Best, RunSummary
from search.terminal.display import Display
from search.terminal.tables import front_table
from search.trial import Proposal, Trial
from spaces.allocation import Allocation

POINTS = (
    pointed(4, {"macs": 300, "params": 150}, error=0.4, error_before=0.7),
    pointed(2, {"macs": 400, "params": 120}, label="uniform", error=0.25, error_before=0.4),
)
TARGETS = (
    budget_of(("macs", 450, "flops=45%")),
    budget_of(("macs", 350, "flops=35%"), ("params", 160, "params=80%")),
)


def summary(targets: Sequence[Budget], best: Sequence[int | None]) -> RunSummary:
    return summary_of(
        {"macs": 1000, "params": 200},
        targets=tuple(targets),
        states={"COMPLETE": 5},
        hypervolume=0.5,
        bests=bests_of(best),
        front=POINTS,
    )


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six seconds pass between two looks at it."""
    monkeypatch.setattr("search.terminal.display.time", SimpleNamespace(monotonic=count(100.0, 6.0).__next__))


def shown(found: RunSummary, width: int = 250) -> str:
    """The first lines of a search that goes on, and that of a trial which finishes."""
    text = StringIO()
    with Display(Console(file=text, width=width)) as display:
        outlook = Outlook(trials=20, finished=5, workers=1, seconds=3.0, weights=1000, free=10**12)
        display.began(Path("runs/one"), found, outlook, 100)
        score = Score(
            error=0.25, error_before=0.4, kl=0.1, kl_before=0.2, costs={"macs": 400, "params": 120}, steps=100, seconds=3.0
        )
        proposal = Proposal(number=5, allocation=Allocation({"b.qk": 8}), space="contract", seed=0)
        display.finished(Trial(proposal=proposal, score=score, reason=None, ended="2026-11-24T01:00:00+00:00"), found, 6)
    return text.getvalue()


@pytest.mark.parametrize(
    ("targets", "best", "target", "words"),
    [
        ([], [], "target none: the whole front;", "2 on the front"),
        (TARGETS[:1], [2], "target flops=45%;", "best under the target: 25.00% at 40.0% of MACs (trial 2)"),
        (TARGETS[:1], [None], "target flops=45%;", "none under the target yet"),
        (TARGETS[1:], [4], "target flops=35% and params=80%;", "best under the target: 40.00% at 30.0% of MACs (trial 4)"),
        (
            TARGETS,
            [2, 4],
            "target flops=45%; flops=35% and params=80%;",
            "best under flops=45%: 25.00% at 40.0% of MACs (trial 2); "
            "best under flops=35% and params=80%: 40.00% at 30.0% of MACs (trial 4)",
        ),
        (
            TARGETS,
            [2, None],
            "target flops=45%; flops=35% and params=80%;",
            "best under flops=45%: 25.00% at 40.0% of MACs (trial 2); none under flops=35% and params=80% yet",
        ),
    ],
    ids=["none", "one", "none kept", "two bounds", "two", "one of two kept"],
)
def test_targets_and_their_best_are_shown(targets: Sequence[Budget], best: list[int | None], target: str, words: str) -> None:
    text = shown(summary(targets, best))
    assert "forecast: 3.0 s a trial; 15 trials on 1 worker take 45 s (0.013 worker-hours); weights at most 15 kB" in text
    assert f"{target} 20 trials in runs/one, continuing after 5" in text
    assert text.splitlines()[-1] == (
        "trial 5: keeps 40.0 % (−60.0 %) of MACs, error 40.00% as built (training images), 25.00% fine-tuned, 3.0 s; "
        f"{words}; 84 s left"
    )


def test_a_best_trial_off_the_front_is_named() -> None:
    """Beaten in error and MACs by one that breaks a bound on parameters."""
    assert "best under the target: trial 3, not on the front" in shown(summary(TARGETS[1:], [3]))


def test_ties_are_marked_and_told() -> None:
    """The expected error stands in place of the measured one in a line, and beside it in the table."""
    points = tuple(replace(point, expected=Interval(mean=point.error + 0.011, low=0.2, high=0.45)) for point in POINTS)
    found = replace(summary(TARGETS[:1], [2]), front=points, bests=(Best(number=2, tied=(4, 7), among=5),))
    assert "best under the target: 26.1 % (20.0–45.0) expected at 40.0% of MACs (trial 2, ≈ 2 more)" in shown(found)
    text = StringIO()
    Console(file=text, width=200).print(front_table(found))
    assert [" ".join(line.split()) for line in text.getvalue().splitlines()][5:7] == [
        "│ ≈ 4 │ │ 300 │ 30.0 % (−70.0 %) │ 150 │ 75.0 % (−25.0 %) │ 70.00% │ 40.00% │ 41.1 % (20.0–45.0) │",
        "│ 2 │ uniform │ 400 │ 40.0 % (−60.0 %) │ 120 │ 60.0 % (−40.0 %) │ 40.00% │ 25.00% │ 26.1 % (20.0–45.0) │",
    ]
    assert "≈ cannot be told apart from the best under flops=45%" in text.getvalue()


def test_every_target_has_a_line_of_the_table_in_colour() -> None:
    for best, styles in (([2, None], [None, "bold green"]), ([2, 4], ["bold green"] * 2), ([], [None, None])):
        assert [row.style for row in front_table(summary(TARGETS, best)).rows] == styles
