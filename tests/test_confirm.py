"""The last tenth of a search: contenders for its picks are fine-tuned again, where that can tell them apart."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from local_launches import config_of
from local_outcomes import Searched
from local_problems import Problem
from local_searches import scored

from search.evidence.confirm import Contender, Repeat, chances_of, to_repeat
from search.evidence.posterior import Evidence
from search.study.ending import Ending, ending_of
from search.study.study import Study
from search.trial import Proposal, Trial
from spaces.allocation import Allocation
from spaces.errors import RunError

optuna.logging.set_verbosity(optuna.logging.WARNING)


def evidence(
    means: Sequence[float], own: Sequence[float], luck: float = 0.0, spread: float = 0.01, numbers: Sequence[int] = ()
) -> Evidence:
    """Of trials whose errors are known with the same independent spread, and whose measured ones have independent luck."""
    each = np.eye(len(means))
    return Evidence(
        numbers=tuple(numbers) or tuple(range(len(means))), means=np.array(means), covariance=spread**2 * each,
        own=np.array(own), luck=luck * each,
    )  # fmt: skip


def contenders(*tunes: int) -> list[Contender]:
    return [Contender(number=number, tunes=count) for number, count in enumerate(tunes)]


# Which contender, by hand


def test_chances_are_those_of_the_normal_distribution() -> None:
    assert chances_of([0, 1], evidence([0.1, 0.1], [0, 0])) == pytest.approx([0.5, 0.5], abs=0.03)
    # the difference has a standard deviation of 0.01 sqrt(2), and is 1 of these: Phi(1) = 0.841
    assert chances_of([0, 1], evidence([0.1, 0.1 + 0.01 * 2**0.5], [0, 0])) == pytest.approx([0.841, 0.159], abs=0.02)
    assert chances_of([0, 1], evidence([0.1, 0.9], [0, 0])).tolist() == [1.0, 0.0]
    assert chances_of([1, 0], evidence([0.1, 0.9], [0, 0])).tolist() == [0.0, 1.0]


def test_a_clear_pick_is_not_confirmed() -> None:
    assert to_repeat(contenders(1, 1), evidence([0.1, 0.2], [1e-4, 1e-4])) == Repeat()
    assert to_repeat(contenders(1), evidence([0.1], [1e-4])) == Repeat()


def test_who_is_far_behind_is_not_repeated() -> None:
    found = evidence([0.1, 0.101, 0.3], [1e-4, 1e-4, 1.0])
    assert to_repeat(contenders(1, 1, 1), found).number in (0, 1)


def test_of_equal_contenders_the_one_of_fewer_fine_tunes_is_repeated() -> None:
    same = evidence([0.1, 0.1], [1e-4, 1e-4])
    assert to_repeat(contenders(2, 1), same) == Repeat(number=1)
    assert to_repeat(contenders(1, 2), same) == Repeat(number=0)


def test_of_equal_chances_the_one_that_seeds_move_more_is_repeated() -> None:
    assert to_repeat(contenders(1, 1), evidence([0.1, 0.1], [1e-6, 1e-4])) == Repeat(number=1)
    assert to_repeat(contenders(1, 1), evidence([0.1, 0.1], [1e-4, 1e-6])) == Repeat(number=0)


def test_what_was_kept_as_built_is_not_fine_tuned_again() -> None:
    found, trained = evidence([0.1, 0.1], [1e-4, 1e-4]), Contender(number=1)
    assert to_repeat([Contender(number=0, trains=False), trained], found) == Repeat(number=1)
    assert to_repeat([Contender(number=number, trains=False) for number in (0, 1)], found) == Repeat(stuck=True)


@pytest.mark.parametrize(("luck", "number"), [(0.0, 0), (1.1, 0), (1.4, None), (1e6, None)])
def test_where_the_luck_of_the_images_dominates_no_seed_helps(luck: float, number: int | None) -> None:
    """Of two allocations with own variances of 1 the distance has a variance of 2 before and a noise of 2 + L, where L is twice
    the luck of each: what seeds without end would remove is a share of 4 / (2 + L)^2. It is a fifth at L = 2.47."""
    found = to_repeat(contenders(1, 1), evidence([0.1, 0.11], [1.0, 1.0], luck, spread=0.1))
    assert found == Repeat(number=number, stuck=number is None)


def test_numbers_need_not_be_rows() -> None:
    found = evidence([0.1, 0.1], [1e-4, 1e-4], numbers=(7, 31))
    assert to_repeat([Contender(number=31), Contender(number=7, tunes=3)], found) == Repeat(number=31)


# In a search

LUCK = 0.1  # of seeds: much more than that of two thousand images


def ending(problem: Problem, trials: int = 20, **options: Any) -> Ending:
    return Ending(trials=trials, targets=problem.parametrisation.budgets.targets, **options)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem(sizes=((16, 32, 48, 64), (8, 128)))


@pytest.fixture(scope="module")
def whole(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """A search of 20 trials, two of which confirm; seeds matter much more than the images."""
    search = Searched(tmp_path_factory.mktemp("whole"), ending(problem), problem, LUCK)
    search.run(20)
    return search


def repeats_of(search: Searched) -> list[Proposal]:
    return [trial.proposal for trial in search.study.trials if trial.proposal.repeats is not None]


def test_the_last_tenth_repeats_contenders_with_other_seeds(whole: Searched) -> None:
    repeats = repeats_of(whole)
    assert [entry.number for entry in repeats] == [18, 19]
    firsts = {trial.proposal.number: trial.proposal for trial in whole.study.trials}
    for entry in repeats:
        first = firsts[entry.repeats or 0]
        assert (entry.allocation, entry.label) == (first.allocation, f"again {first.number}")
        assert first.seed == 0 and entry.seed >= 1 and not entry.parameters
    assert len({(entry.allocation, entry.seed) for entry in repeats}) == 2, "no fine-tune is made twice"
    assert all(trial.number < 18 for trial in whole.study.memory.trials), "the sampler does not see them"
    assert all(entry.number in whole.study.evidence for entry in repeats), "each may be picked"


def test_a_repeat_that_was_killed_runs_again(problem: Problem, whole: Searched, tmp_path: Path) -> None:
    part = Searched(tmp_path, ending(problem), problem, LUCK)
    part.run(18)
    lost = part.ask()
    part.study.close()
    again = Searched(tmp_path, ending(problem), problem, LUCK)
    assert again.ask() == lost == repeats_of(whole)[0]
    assert lost is not None
    again.tell(lost)
    again.run(20)
    assert again.history == whole.history


def test_a_file_that_repeats_what_was_never_tried_is_passed_over(problem: Problem, whole: Searched, tmp_path: Path) -> None:
    part = Searched(tmp_path, ending(problem), problem, LUCK)
    part.run(18)
    lost = part.ask()
    part.study.close()
    assert lost is not None
    path = part.study.folder(18) / "allocation.json"
    path.write_text(path.read_text().replace(f'"repeats": {lost.repeats}', '"repeats": 999'))
    assert Searched(tmp_path, ending(problem), problem, LUCK).ask() == lost, "chosen again"


def test_a_journal_whose_repeat_is_of_another_allocation_is_damaged(problem: Problem, tmp_path: Path) -> None:
    search = Searched(tmp_path, ending(problem), problem, LUCK)
    search.run(19)
    search.study.close()
    (repeat,) = repeats_of(search)
    other = next(trial.proposal.number for trial in search.study.trials if trial.proposal.allocation != repeat.allocation)
    journal = tmp_path / "study.journal"
    journal.write_text(journal.read_text().replace(f'"repeats":{repeat.repeats},', f'"repeats":{other},'))
    with pytest.raises(RunError, match=f"trial 18 .* does not repeat trial {other}"):
        Searched(tmp_path, ending(problem), problem, LUCK)


def test_where_seeds_do_not_matter_the_search_goes_on(problem: Problem, tmp_path: Path) -> None:
    """Errors that follow from the divergence, on few images: what is uncertain is luck."""
    search = Searched(tmp_path, ending(problem), problem, luck=0.0, images=60)
    search.run(20)
    assert len(search.study.trials) == 20 and not repeats_of(search)
    assert search.study.stuck


def test_without_evidence_nothing_is_repeated(problem: Problem, tmp_path: Path) -> None:
    study = Study(tmp_path, problem.parametrisation, ("error", "macs"), "additive", 0, True, ending=ending(problem, trials=10))
    search = Searched(tmp_path / "other", None, problem)
    search.study = study
    for start in problem.starts:
        study.enqueue("warm start", problem.parametrisation.decode(start), start)
    search.run(10)
    study.close()
    assert len(study.trials) == 10 and not repeats_of(search) and not study.stuck


def ended(number: int, macs: int, params: int, repeats: int | None = None, steps: int = 10) -> Trial:
    score = replace(scored(0.1, macs), costs={"macs": macs, "params": params}, steps=steps)
    label = None if repeats is None else f"again {repeats}"
    proposal = Proposal(
        number=number, allocation=Allocation({"b.hidden": repeats or number + 1}), space="test", seed=0,
        label=label, repeats=repeats,
    )  # fmt: skip
    return Trial(proposal=proposal, score=score, reason=None, ended="")


def test_targets_take_turns() -> None:
    """Trials 0 and 1 are under the first target alone, 2 and 3 under the second one; no two can be told apart."""
    both = Ending(trials=50, targets=[{"macs": 100}, {"params": 100}])
    first, second = [ended(0, 90, 900), ended(1, 80, 800)], [ended(2, 900, 90), ended(3, 800, 80)]
    repeat = ended(4, 90, 900, repeats=1)
    same = evidence([0.1] * 5, [1e-4] * 5)

    def found(*trials: Trial) -> int | None:
        return both.repeat(trials, [trial.proposal for trial in trials], same).number

    assert found(*first, *second) in (0, 1)
    assert found(*first, *second, repeat) in (2, 3)
    assert found(*second) in (2, 3), "where nothing is tied under one target, the next one goes first"
    assert found(*first, repeat) in (0, 1, 4)
    assert found(first[0], second[0]) is None


def test_what_is_not_trained_is_not_trained_again() -> None:
    as_built = [ended(0, 90, 900, steps=0), ended(1, 80, 800, steps=0)]
    found = Ending(trials=50, targets=[{"macs": 100}])
    assert found.repeat(as_built, [trial.proposal for trial in as_built], evidence([0.1] * 2, [1e-4] * 2)) == Repeat()


@pytest.mark.parametrize(("trials", "confirming"), [(9, 0), (10, 1), (11, 2), (50, 5), (51, 6)])
def test_how_many_trials_confirm(problem: Problem, trials: int, confirming: int) -> None:
    found = ending(problem, trials=trials)
    assert found.confirming == confirming
    first = trials - confirming
    assert found.is_confirming(first, []) is (confirming > 0) or trials == 9
    assert not found.is_confirming(first - 1, [])
    assert replace(found, confirms=False).confirming == 0 and not replace(found, confirms=False).is_confirming(first, [])


def test_which_searches_confirm(tmp_path: Path) -> None:
    def found(**options: Any) -> Ending | None:
        return ending_of(config_of(tmp_path, **options), [{"macs": 1.0}])

    confirmed = found()
    assert confirmed is not None and confirmed.confirms
    for name, value in (("steps", 0), ("target", list[str]())):
        other = found(**{name: value})
        assert other is not None and not other.confirms
    assert found(recipe="vtp") is None
