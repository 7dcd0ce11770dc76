"""What is said of a run's figures: no more than they can tell."""

from typing import Any

import pytest
from local_tables import budget_of, pointed, summary_of

from search.evidence.intervals import Interval
from search.report.verdict import BEST, TIED, best_under, expected_text, legend, mark_of, numbered, tied_under, verdicts
from search.run.summary import Best, DenseFigures, RunSummary

COSTS = {"macs": 1000.0, "params": 200.0}
CHANCE = Interval(mean=0.0012, low=-0.0005, high=0.0029)
GAIN = Interval(mean=0.012, low=0.005, high=0.019)
WORSE = Interval(mean=0.03, low=0.01, high=0.05)


def summary(*bests: Best | None, images: int = 5000, **changes: Any) -> RunSummary:
    """Of a run of so many targets, flops=45%, flops=35% and so on; trial 2 is on the front."""
    targets = tuple(budget_of(("macs", 450 - 100 * at, f"flops={45 - 10 * at}%")) for at in range(len(bests)))
    front = (pointed(2, {"macs": 400, "params": 120}, steps=100, kept_step=0),)
    fields: dict[str, Any] = {"dense": DenseFigures(costs=COSTS, error=0.2, images=images), "front": front, "bests": bests}
    return summary_of(COSTS, targets=targets, **{**fields, **changes})


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (None, "–"),
        (Interval(mean=0.134, low=0.125, high=0.144), "13.4 % (12.5–14.4)"),
        (Interval(mean=0.1342, low=0.1301, high=0.1399), "13.42 % (13.01–13.99)"),
    ],
)
def test_digits_are_as_many_as_the_interval_is_worth(interval: Interval | None, text: str) -> None:
    assert expected_text(interval) == text


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([3], "trial 3"),
        ([3, 5], "trials 3 and 5"),
        ([1, 2, 3, 4, 5, 6], "trials 1, 2, 3, 4, 5 and 6"),
        ([1, 2, 3, 4, 5, 6, 7, 8], "trials 1, 2, 3, 4, 5, 6 and 2 more"),
    ],
)
def test_long_lists_of_trials_are_cut(numbers: list[int], text: str) -> None:
    assert numbered(numbers) == text


def test_a_gain_is_told_with_its_interval() -> None:
    found = summary(Best(number=2, among=9, start=1, gained=GAIN, lost=WORSE))
    assert verdicts(found) == (
        "Under flops=45% the trials gained 1.20 points (0.50 to 1.90) of error over the warm start, trial 1.",
    )


def test_a_gain_that_may_be_chance_is_called_so() -> None:
    """Nothing is known that would help: the images are many, the fine-tune was not what was kept, and much was lost."""
    found = summary(Best(number=2, among=9, start=1, gained=CHANCE, lost=WORSE))
    assert verdicts(found) == (
        "Under flops=45% the trials gained 0.12 points (−0.05 to 0.29) of error over the warm start, trial 1: "
        "that cannot be told from chance.",
    )


def test_no_gain_over_the_warm_start_says_what_was_best() -> None:
    nothing = Interval(mean=0.0, low=0.0, high=0.0)
    (text,) = verdicts(summary(Best(number=1, among=9, start=1, gained=nothing, lost=WORSE)))
    assert text == (
        "Under flops=45% no trial is better than the warm start, trial 1: the sizes that follow in closed form were the best. "
        "What may help: another space (--space)."
    )


@pytest.mark.parametrize(
    ("changes", "lost", "advice"),
    [
        ({"images": 220}, WORSE, "more search images: with 880, differences are known about twice as well"),
        (
            {"front": (pointed(2, {"macs": 400, "params": 120}, steps=100, kept_step=100),)},
            WORSE,
            "a longer fine-tune (--steps): its last step had the best weights",
        ),
        (
            {},
            Interval(mean=0.001, low=-0.001, high=0.003),
            "a lower target: the best trial cannot be told apart from the dense model, or is better",
        ),
    ],
    ids=["few images", "the fine-tune was kept", "nothing lost"],
)
def test_what_may_help_follows_from_what_is_known(changes: dict[str, Any], lost: Interval, advice: str) -> None:
    (text,) = verdicts(summary(Best(number=2, among=9, start=1, gained=CHANCE, lost=lost), **changes))
    assert text.endswith(f" What may help: {advice}.")
    (told,) = verdicts(summary(Best(number=2, among=9, start=1, gained=GAIN, lost=lost), **changes))
    assert "What may help" not in told


@pytest.mark.parametrize(("prefer", "why"), [("accurate", "least expected error"), ("cheap", "least cost")])
def test_ties_are_counted_among_the_trials_under_the_target(prefer: str, why: str) -> None:
    found = summary(Best(number=2, tied=(7, 3), among=9), images=220, prefer=prefer)
    assert verdicts(found) == (
        "On 220 search images 3 of 9 finished trials under flops=45% cannot be told apart: "
        f"trial 2, taken for its {why}, and trials 7 and 3.",
    )


def test_marks_and_their_legend() -> None:
    found = summary(Best(number=2, tied=(7,), among=9), Best(number=7, tied=(8,), among=3))
    assert [mark_of(number, found) for number in (2, 7, 8, 9)] == [BEST, BEST, TIED, ""]
    assert (best_under(7, found), tied_under(7, found)) == (("flops=35%",), ("flops=45%",))
    assert legend(found) == "≈ cannot be told apart from the best under flops=45% or flops=35%"


def test_nothing_is_said_where_nothing_is_known() -> None:
    for found in (summary(Best(number=2)), summary(None), summary(None, bests=())):
        assert (verdicts(found), legend(found), mark_of(7, found)) == ((), None, "")
