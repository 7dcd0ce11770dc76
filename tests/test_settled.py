"""What a further trial is worth, and searches that end where it is too little."""

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from local_launches import config_of
from local_outcomes import Searched
from local_problems import Problem

from search.config import StudyConfig
from search.evidence.pick import Candidate
from search.evidence.posterior import Evidence
from search.evidence.settled import PATIENCE, SMALL, Worth, known_to, settled_after, worth_of
from search.study.ending import Ending
from search.trial import Proposal
from spaces.allocation import Allocation
from spaces.errors import ConfigError

optuna.logging.set_verbosity(optuna.logging.WARNING)


def proposal(number: int, gain: float | None = None, known: float | None = 1.0, **options: Any) -> Proposal:
    return Proposal(
        number=number, allocation=Allocation({"b.hidden": 8}), space="test", seed=0, gain=gain, known_to=known, **options
    )


def proposals(*gains: float | None) -> list[Proposal]:
    return [proposal(number, gain) for number, gain in enumerate(gains)]


LOW, HIGH = 0.5 * SMALL, 1.5 * SMALL


# How well a front is known, by hand

COVARIANCE = np.diag([0.04, 0.01, 0.09])  # of trials 0, 1 and 2
EVIDENCE = Evidence(numbers=(0, 1, 2), means=np.array([0.1, 0.2, 0.05]), covariance=COVARIANCE)


def at(number: int, load: float) -> Candidate:
    return Candidate(number=number, error=0.0, load=load)


def test_a_front_of_one_trial_is_known_as_well_as_that() -> None:
    assert known_to([at(0, 0.6)], EVIDENCE, 0.5) == pytest.approx(0.2)
    assert known_to([at(0, 1.0)], EVIDENCE, 0.5) == pytest.approx(0.2), "also at the upper end"


def test_stairs_count_by_their_widths() -> None:
    """Trial 1 is the front from 0.6 to 0.9, trial 0 from there to 1: (3/4)^2 0.01 + (1/4)^2 0.04."""
    assert known_to([at(0, 0.9), at(1, 0.6)], EVIDENCE, 0.5) == pytest.approx((9 / 16 * 0.01 + 1 / 16 * 0.04) ** 0.5)
    assert known_to([at(0, 0.6), at(1, 0.9)], EVIDENCE, 0.5) == pytest.approx(0.2), "trial 1 is beaten"
    assert known_to([at(0, 0.75), at(1, 0.2)], EVIDENCE, 0.5) == pytest.approx(0.05**0.5 / 2), "the band alone counts"


def test_levels_are_compared_with_the_reference() -> None:
    assert known_to([at(0, 0.6)], EVIDENCE, 0.5, reference=2) == pytest.approx(0.13**0.5)
    paired = Evidence(numbers=(0, 2), means=np.array([0.1, 0.05]), covariance=np.full((2, 2), 0.04))
    assert known_to([at(0, 0.6)], paired, 0.5, reference=2) == pytest.approx(0.0), "what they share does not count"
    assert known_to([at(0, 0.6)], EVIDENCE, 0.5, reference=9) == pytest.approx(0.2), "one that is not known"


def test_nothing_is_known_of_an_empty_front() -> None:
    assert known_to([], EVIDENCE, 0.5) is None
    assert known_to([at(9, 0.6)], EVIDENCE, 0.5) is None


# When a search has settled, by hand


def test_settled_means_small_gains_in_a_row() -> None:
    assert PATIENCE == 3
    assert settled_after(proposals(HIGH, LOW, LOW, LOW, HIGH), 1) == 3
    assert settled_after(proposals(LOW, LOW, HIGH, LOW, LOW), 1) is None
    assert settled_after(reversed(proposals(HIGH, LOW, LOW, LOW)), 1) == 3, "in the order of the numbers"
    assert settled_after(proposals(LOW, LOW, LOW, LOW, LOW), 2) is None
    assert settled_after(proposals(LOW, LOW, LOW, LOW, LOW, LOW), 2) == 5
    assert settled_after([], 1) is None


def test_what_tells_nothing_is_not_small() -> None:
    assert settled_after(proposals(LOW, LOW, None, LOW), 1) is None
    assert settled_after([proposal(number, LOW, known=None) for number in range(5)], 1) is None
    assert settled_after([proposal(number, 0.0, known=0.0) for number in range(5)], 1) is None
    labelled = [*proposals(LOW, LOW), proposal(2, LOW, label="uniform"), proposal(3, LOW)]
    assert settled_after(labelled, 1) == 3, "baselines and repeats are not the sampler's"


def test_worth_is_that_of_the_last_turn() -> None:
    assert worth_of(proposals(0.5, 0.2, 0.3), 1) == Worth(gain=0.3, known_to=1.0)
    assert worth_of(proposals(0.5, 0.3, 0.2), 2) == Worth(gain=0.3, known_to=1.0)
    assert worth_of(proposals(LOW, LOW, LOW), 1) == Worth(gain=LOW, known_to=1.0, settled=True)
    assert worth_of(proposals(None, None), 1) is None
    assert worth_of([], 1) is None


def ending(trials: int = 50, **options: Any) -> Ending:
    return Ending(trials=trials, targets=[{"macs": 1.0}], until_settled=True, **options)


def test_how_many_trials_a_settled_search_has() -> None:
    """Settled with trial 22, the 23rd: a tenth of these, 3, may confirm."""
    found = [*(proposal(number, HIGH) for number in range(20)), *(proposal(number, LOW) for number in range(20, 23))]
    assert ending().settled(found[:-1]) is None and ending().wanted(found[:-1]) == 50
    assert ending().settled(found) == 23 and ending().wanted(found) == 26
    assert not ending().is_confirming(22, found[:-1]) and ending().is_confirming(23, found)
    assert ending(confirms=False).wanted(found) == 23
    assert ending(trials=24).wanted(found) == 24, "at most those that were asked for"
    late = [*found, proposal(23, HIGH), proposal(24, HIGH), proposal(25, label="again 3", repeats=3)]
    assert ending().wanted(late) == 28, "two were proposed at the same time"
    assert Ending(trials=50, targets=[{"macs": 1.0}]).wanted(found) == 50, "not asked for"


# In a search


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem(sizes=((8, 16, 24, 32, 40, 48, 56, 64), (8, 128)))


def of(problem: Problem, trials: int, **options: Any) -> Ending:
    return Ending(trials=trials, targets=problem.parametrisation.budgets.targets, **options)


@pytest.fixture(scope="module")
def whole(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    search = Searched(tmp_path_factory.mktemp("whole"), of(problem, 60, until_settled=True), problem, luck=0.1)
    search.run(60)
    return search


def test_a_search_ends_where_it_has_settled(problem: Problem, whole: Searched) -> None:
    found = [trial.proposal for trial in whole.study.trials]
    last = settled_after(found, 1)
    assert last is not None and len(found) < 60
    assert len(found) <= last + 1 + -(-(last + 1) // 10)
    assert all(entry.repeats is not None for entry in found if entry.number > last)
    assert whole.study.worth is not None and whole.study.worth.settled
    assert whole.study.is_settled


def test_it_proposes_as_one_that_does_not_end(problem: Problem, whole: Searched, tmp_path: Path) -> None:
    last = settled_after(whole.study.proposals, 1)
    assert last is not None
    other = Searched(tmp_path, None, problem, luck=0.1)
    other.run(last + 1)
    assert other.history == whole.history[: last + 1]


def test_a_settled_search_is_continued_as_it_would_have_ended(problem: Problem, whole: Searched, tmp_path: Path) -> None:
    last = settled_after(whole.study.proposals, 1)
    assert last is not None
    for stop in (last - 1, last + 1, 60, 60):
        part = Searched(tmp_path, of(problem, 60, until_settled=True), problem, luck=0.1)
        part.run(stop)
        part.study.close()
    assert part.history == whole.history, "also when it is continued after its end"


@pytest.mark.parametrize("screening", [True, False])
def test_proposals_say_what_they_were_worth(tmp_path: Path, problem: Problem, screening: bool) -> None:
    search = Searched(tmp_path, None, problem, screening=screening)
    search.run(14)
    search.study.close()
    found = [trial.proposal for trial in Searched(tmp_path, None, problem, screening=screening).study.trials]
    assert [entry.gain is None for entry in found] == [entry.label is not None or entry.number == 4 for entry in found]
    assert all(entry.known_to is not None and entry.known_to > 0 for entry in found if entry.gain is not None)
    gains = [entry.gain for entry in found if entry.gain is not None]
    assert all(0 < gain < 0.3 for gain in gains)


@pytest.mark.parametrize("options", [{"sampler": "tpe"}, {"recipe": "vtp", "target": ("flops=50%",)}])
def test_only_the_additive_sampler_knows(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"until_settled asks the sampler 'additive'.*'(tpe|vtp)'"):
        StudyConfig(until_settled=True, **options)


def test_the_option_is_one_of_a_search(tmp_path: Path) -> None:
    assert config_of(tmp_path, until_settled=True).study.until_settled
    assert not config_of(tmp_path).study.until_settled
