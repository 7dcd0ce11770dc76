"""What is done about trials that end without a score."""

import pytest
from local_searches import scored

from objectives.score import Score
from search.driver.failure_policy import Faults, cause_of
from search.trial import Outcome, Proposal, Trial
from spaces.allocation import Allocation
from spaces.errors import RunError


def lost(number: int) -> Outcome:
    return Outcome(number=number, score=None, reason="its worker was lost", lost=True)


def trial(number: int, score: Score | None, reason: str | None) -> Trial:
    proposal = Proposal(number=number, allocation=Allocation({"b.hidden": 8}), space="test", seed=0)
    return Trial(proposal=proposal, score=score, reason=reason, ended="2026-11-24T01:00:00+00:00")


def failed(number: int, reason: str = "RuntimeError: out of memory") -> Trial:
    return trial(number, None, reason)


def succeeded(number: int) -> Trial:
    return trial(number, scored(0.1, 100), None)


def test_a_lost_trial_is_tried_again_twice() -> None:
    faults = Faults()
    assert [faults.again(lost(7)) for _ in range(4)] == [True, True, False, False]
    assert faults.again(lost(8)), "every trial has its own tries"


def test_what_a_worker_said_itself_is_final() -> None:
    faults = Faults()
    assert not faults.again(Outcome(number=0, score=None, reason="RuntimeError: out of memory"))
    assert not faults.again(Outcome(number=0, score=scored(0.1, 100)))


def test_the_third_failure_in_a_row_of_one_cause_ends_the_search() -> None:
    faults = Faults()
    faults.ended(failed(0))
    faults.ended(failed(1))
    with pytest.raises(RunError, match=r"3 trials in a row .* out of memory \(see stderr.log of trial 2\)") as raised:
        faults.ended(failed(2))
    assert "\n" not in str(raised.value)


def test_numbers_in_reasons_do_not_matter() -> None:
    faults = Faults()
    for number, reason in enumerate(("at step 3: 2.5 GB at 0x7f31a", "at step 12: 11 GB at 0x0")):
        faults.ended(failed(number, reason))
    with pytest.raises(RunError):
        faults.ended(failed(2, "at step 7: 0.25 GB at 0xdead"))
    assert cause_of("trial 3 on cuda:1") == cause_of("trial 14 on cuda:0") != cause_of("trial 3 on cpu")


@pytest.mark.parametrize("between", [succeeded(9), failed(9, "DivergedError: the loss is nan")], ids=["success", "other cause"])
def test_what_lies_between_failures_ends_the_row(between: Trial) -> None:
    faults = Faults()
    for ended in (failed(0), failed(1), between, failed(2), failed(3), between):
        faults.ended(ended)
    for number in (4, 5):
        faults.ended(failed(number))
    with pytest.raises(RunError, match="3 trials in a row"):
        faults.ended(failed(6))


def test_a_trial_that_was_stopped_at_a_rung_has_not_failed() -> None:
    faults = Faults()
    for number in range(5):
        faults.ended(trial(number, scored(0.1, 100), "dominated by trial 1"))
    for number in (5, 6):
        faults.ended(failed(number, "dominated by trial 1"))
    with pytest.raises(RunError, match="3 trials in a row"):
        faults.ended(failed(7, "dominated by trial 1"))
