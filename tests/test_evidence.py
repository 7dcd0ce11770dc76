"""What the search split tells of errors: intervals, the posterior, picks, and the files that they come from and go to."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from local_searches import scored

from objectives.cost.spec import Cost
from objectives.outcomes import Outcomes
from search.evidence.file import read_evidence, write_evidence
from search.evidence.gathered import Gathered
from search.evidence.intervals import difference_interval, error_interval
from search.evidence.pick import Candidate, pick, within
from search.evidence.posterior import NO_EVIDENCE, Evidence, evidence_of
from search.evidence.sample import Sample, shrunk_covariance
from search.layout import EVIDENCE, outcomes_of
from search.trial import Proposal, Trial
from spaces.allocation import Allocation
from spaces.errors import CheckpointError, RunError

# Intervals


def test_the_interval_of_an_error_is_wilsons() -> None:
    """10 of 100: the textbook's 5.52 to 17.44 %."""
    found = error_interval(0.1, 0.1 * 0.9 / 100)
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.0552, 0.1744), abs=1e-4)


def test_an_error_of_nothing_has_an_interval() -> None:
    found = error_interval(0.0, 0.003**2)
    assert found.low == 0.0 and 2 * 0.003 < found.high < 5 * 0.003


@given(mean=st.floats(0, 1), spread=st.floats(1e-4, 0.3))
def test_an_interval_holds_its_mean_and_stays_within_shares(mean: float, spread: float) -> None:
    found = error_interval(mean, spread**2)
    assert 0 <= found.low <= found.mean == mean <= found.high <= 1


def wrong_at(images: int, *places: int) -> np.ndarray:
    found = np.zeros(images, dtype=bool)
    found[list(places)] = True
    return found


def test_only_images_that_one_model_alone_has_wrong_tell_models_apart() -> None:
    """Five against none of 100: the share of the first is at least .025 ** (1 / 5) = .478 of these five."""
    found = difference_interval(wrong_at(100, 0, 1, 2, 3, 4, 50), wrong_at(100, 50))
    assert found.mean == pytest.approx(0.05)
    assert found.low == pytest.approx(0.05 * (2 * 0.025 ** (1 / 5) - 1))
    assert found.high == pytest.approx(0.05)
    assert found.holds_zero, "five in a row are chance at 95 %"
    assert not difference_interval(wrong_at(100, 0, 1, 2, 3, 4, 5), wrong_at(100)).holds_zero, "six are not"


def test_differences_are_of_opposite_sign_the_other_way_round() -> None:
    first, second = wrong_at(60, 1, 2, 3, 9), wrong_at(60, 3, 20)
    ours, theirs = difference_interval(first, second), difference_interval(second, first)
    assert (ours.mean, ours.low, ours.high) == pytest.approx((-theirs.mean, -theirs.high, -theirs.low))


def test_equal_answers_differ_by_nothing() -> None:
    found = difference_interval(wrong_at(10, 3), wrong_at(10, 3))
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)


# Covariances


def test_a_covariance_of_many_columns_is_what_was_counted() -> None:
    random = np.random.default_rng(0)
    shared = random.standard_normal(20000)
    rows = np.stack([shared + weight * random.standard_normal(20000) for weight in (0.2, 1.0, 3.0)]).astype(np.float32)
    assert shrunk_covariance(rows) == pytest.approx(np.cov(rows), abs=0.15)


def test_a_covariance_of_few_columns_has_an_inverse() -> None:
    rows = np.random.default_rng(0).standard_normal((30, 10)).astype(np.float32)
    assert np.linalg.eigvalsh(np.cov(rows)).min() < 1e-9
    assert np.linalg.eigvalsh(shrunk_covariance(rows)).min() > 1e-3


def test_the_covariance_of_one_row_is_its_variance() -> None:
    assert shrunk_covariance(np.array([[0.0, 1.0]], dtype=np.float32)) == pytest.approx(np.array([[0.25]]))


def test_the_luck_of_a_bad_model_holds_that_of_a_good_one_at_most_once() -> None:
    """Of answers that are wrong in a nested way, on so few images that the shrinking decides."""
    random = np.random.default_rng(0)
    difficulty, shares = random.random(100), np.linspace(0.02, 0.3, 60)
    own = np.where(random.random((60, 100)) < 0.3, random.random((60, 100)), difficulty)
    found = shrunk_covariance((own < shares[:, None]).astype(np.float32), nested=True)
    variances = np.diag(found)
    assert (found <= np.minimum.outer(variances, variances) + 1e-9).all()
    assert np.linalg.eigvalsh(found).min() > 0


# The posterior


def outcomes(wrong: np.ndarray, kl: np.ndarray | float = 0.0) -> Outcomes:
    divergences = torch.tensor(np.broadcast_to(kl, wrong.shape).copy(), dtype=torch.float32)
    return Outcomes(torch.tensor(wrong), torch.zeros(len(wrong)), divergences)


def drawn(divergences: list[float], images: int, seed: int, dense: float = 0.1) -> tuple[Sample, list[float]]:
    """Models whose errors grow by .4 times their divergence, give or take a tenth of it; and these errors.

    An image has one difficulty for all models, and some luck of its own for each.
    """
    random = np.random.default_rng(seed)
    difficulty, sample, errors = random.random(images), Sample(), []
    for number, kl in zip(range(-1, len(divergences)), [0.0, *divergences], strict=True):
        error = dense + (0.4 + 0.1 * random.standard_normal()) * kl
        own = np.where(random.random(images) < 0.1, random.random(images), difficulty)
        sample.add(number, outcomes(own < error, kl * random.exponential(size=images)))
        errors.append(error)
    return sample, errors[1:]


DIVERGENCES = [0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2]


def test_errors_of_many_models_on_few_images_are_not_below_all_that_was_measured() -> None:
    """What hard images do to bad models is not taken for what they would do to good ones many times over."""
    below = []
    for seed in range(10):
        sample, _ = drawn(list(np.linspace(0.005, 0.06, 50)), 300, seed, dense=0.02)
        found = evidence_of(sample, {number: number for number in range(50)}, tested=0)
        below.append(float(found.means.min()))
    assert 0.01 < np.mean(below) < 0.03, "the dense model's is 0.02"
    assert min(below) > 0


def test_intervals_hold_the_true_error_as_often_as_they_say_and_picks_are_better_than_lucky_ones() -> None:
    inside, apart, ours, lucky = [], [], [], []
    for seed in range(60):
        sample, errors = drawn(DIVERGENCES, 400, seed)
        found = evidence_of(sample, {number: number for number in range(8)}, tested=0)
        for number, error in enumerate(errors):
            interval, gap = found.expected(number), found.difference(number, 0)
            inside.append(interval.low <= error <= interval.high)
            apart.append(gap.low <= error - errors[0] <= gap.high)
        measured, _ = sample.errors()
        ours.append(errors[int(np.argmin(found.means))] - min(errors))
        lucky.append(errors[int(np.argmin(measured[1:]))] - min(errors))
    assert 0.9 <= np.mean(inside) <= 0.99
    assert 0.9 <= np.mean(apart) <= 1.0
    assert np.mean(ours) < np.mean(lucky) / 4


def test_an_interval_for_few_test_images_is_wider() -> None:
    sample, _ = drawn(DIVERGENCES, 400, 0)
    narrow, wide = (evidence_of(sample, {0: 0, 1: 1}, tested).expected(0) for tested in (0, 100))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    assert wide.mean == narrow.mean


def test_what_is_expected_does_not_depend_on_the_order_in_which_trials_ended() -> None:
    random = np.random.default_rng(0)
    rows = {number: (random.random(200) < 0.2, 0.02 * (number + 2)) for number in range(-1, 5)}
    ahead, behind = Sample(), Sample()
    for number in range(-1, 5):
        ahead.add(number, outcomes(*rows[number]))
    for number in reversed(range(-1, 5)):
        behind.add(number, outcomes(*rows[number]))
    allocations = dict.fromkeys(range(5))
    first, second = evidence_of(ahead, allocations, 0), evidence_of(behind, allocations, 0)
    assert first.numbers == second.numbers == (0, 1, 2, 3, 4)
    assert first.means == pytest.approx(second.means)
    assert first.covariance == pytest.approx(second.covariance)


def test_fine_tunes_of_one_allocation_are_nearer_to_each_other() -> None:
    sample, _ = drawn([0.1, 0.1, 0.1], 400, 3)
    found = evidence_of(sample, {0: "one", 1: "one", 2: "another"}, 0)
    widths = [found.difference(0, other).high - found.difference(0, other).low for other in (1, 2)]
    assert widths[0] < widths[1]


def test_outcomes_of_other_images_are_of_no_use() -> None:
    sample = Sample()
    assert sample.add(0, outcomes(wrong_at(10, 1)))
    assert not sample.add(1, outcomes(wrong_at(11, 1)))
    assert not sample.add(2, Outcomes(torch.zeros(10, dtype=torch.bool), torch.zeros(10)))
    assert sample.numbers == [0] and sample.images == 10
    assert sample.wrong(0).tolist() == wrong_at(10, 1).tolist()


def test_nothing_is_known_without_trials() -> None:
    assert evidence_of(Sample(), {}, 0) is NO_EVIDENCE
    sample = Sample()
    sample.add(-1, outcomes(wrong_at(10, 1)))
    assert evidence_of(sample, {}, 0) is NO_EVIDENCE
    with pytest.raises(KeyError):
        NO_EVIDENCE.expected(0)


# Picks


def told(means: list[float], spread: float) -> Evidence:
    """Trials 0, 1, ... of these expected errors, each known by itself."""
    covariance = spread**2 * np.eye(len(means))
    return Evidence(numbers=tuple(range(len(means))), means=np.array(means), covariance=covariance, images=100)


def candidates(*loads: float) -> list[Candidate]:
    return [Candidate(number=number, error=0.5, load=load) for number, load in enumerate(loads)]


def test_the_least_expected_error_is_picked_and_what_cannot_be_told_from_it_is_named() -> None:
    """Differences are known to .014: .02 is within 1.96 times that, .04 is not."""
    found = pick(candidates(1.0, 0.6, 0.5, 0.4), told([0.1, 0.12, 0.11, 0.14], 0.01))
    assert found is not None and (found.number, found.tied) == (0, (2, 1))


def test_whoever_prefers_cheap_gets_the_cheapest_that_cannot_be_told_from_it() -> None:
    found = pick(candidates(1.0, 0.6, 0.5, 0.4), told([0.1, 0.12, 0.11, 0.14], 0.01), "cheap")
    assert found is not None and (found.number, found.tied) == (2, (1, 0))


def test_of_equal_ones_the_one_that_uses_the_budget_is_picked() -> None:
    found = pick(candidates(0.4, 0.9, 0.5), told([0.1, 0.1, 0.1], 0.01))
    assert found is not None and found.number == 1


def test_without_evidence_the_measured_error_decides() -> None:
    entries = [Candidate(number=number, error=error, load=0.5) for number, error in enumerate([0.3, 0.1, 0.2])]
    found = pick(entries, NO_EVIDENCE)
    assert found is not None and (found.number, found.tied) == (1, ())
    assert pick([], NO_EVIDENCE) is None


def test_trials_without_an_error_or_above_a_bound_are_no_candidates() -> None:
    costs: dict[Cost, float] = {"macs": 30.0, "params": 5.0}
    trials: list[tuple[int, float | None, dict[Cost, float]]] = [
        (0, 0.1, costs),
        (1, None, costs),
        (2, math.nan, costs),
        (3, 0.1, {"macs": 30.0}),
        (4, 0.1, {**costs, "macs": 41.0}),
    ]
    assert within(trials, {"macs": 40.0, "params": 10.0}) == [Candidate(number=0, error=0.1, load=0.75)]
    assert [entry.number for entry in within(trials, {"macs": 41.0})] == [0, 3, 4]


def test_trials_of_which_nothing_is_known_do_not_compete_with_others() -> None:
    entries = [Candidate(number=9, error=0.0, load=0.5), *candidates(0.5)]
    found = pick(entries, told([0.1], 0.01))
    assert found is not None and found.number == 0


# Files


def test_outcomes_come_back_from_their_file(tmp_path: Path) -> None:
    made = Outcomes(torch.tensor([True, False, True]), torch.tensor([0.5, 1e9, 0.25]), torch.tensor([0.0, 1.0, 2.0]))
    made.save(tmp_path / "outcomes.safetensors")
    found = Outcomes.load(tmp_path / "outcomes.safetensors")
    assert found.wrong.tolist() == [True, False, True]
    assert found.kl is not None and found.kl.tolist() == [0.0, 1.0, 2.0]
    assert found.cross_entropy[0] == 0.5 and math.isfinite(found.cross_entropy[1])
    (tmp_path / "outcomes.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Outcomes.load(tmp_path / "outcomes.safetensors")


def test_evidence_comes_back_from_its_file(tmp_path: Path) -> None:
    made = told([0.1, 0.2], 0.01)
    write_evidence(tmp_path, made)
    found = read_evidence(tmp_path)
    assert (found.numbers, found.images, found.tested) == (made.numbers, 100, 0)
    assert found.difference(0, 1) == made.difference(0, 1)


@pytest.mark.parametrize("damage", [b"", b"torn", b"\x00" * 64])
def test_damaged_evidence_is_refused(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / EVIDENCE).write_bytes(damage)
    with pytest.raises(RunError, match=r"evidence\.safetensors cannot be read"):
        read_evidence(tmp_path)


def test_a_run_without_evidence_has_none(tmp_path: Path) -> None:
    assert read_evidence(tmp_path) is NO_EVIDENCE


def ended(number: int, allocation: dict[str, int]) -> Trial:
    proposal = Proposal(number=number, allocation=Allocation(allocation), space="contract", seed=0)
    return Trial(proposal=proposal, score=scored(0.1, 10), reason=None, ended="2026-11-27T00:00:00+00:00")


def test_what_trials_made_of_images_is_read_from_their_folders_once(tmp_path: Path) -> None:
    sample, _ = drawn([0.01, 0.05], 200, 0)
    gathered = Gathered(tmp_path, outcomes(sample.wrong(-1)), tested=50)
    trials = [ended(number, {"a": number + 1}) for number in range(3)]
    for number, kl in ((0, 0.01), (1, 0.05)):
        outcomes(sample.wrong(number), kl).save(outcomes_of(tmp_path, number))
    first = gathered.of(trials[:1])
    assert (first.numbers, first.images, first.tested) == ((0,), 200, 50)
    outcomes_of(tmp_path, 0).unlink()
    outcomes_of(tmp_path, 2).parent.mkdir(parents=True)
    outcomes_of(tmp_path, 2).write_bytes(b"torn")
    assert gathered.of(trials).numbers == (0, 1), "the third is unreadable, and the first was read before"
