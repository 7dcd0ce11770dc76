"""Which points of a run are exported, on made-up tables; and the point that is built on a budget."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from local_runs import Fails
from local_searches import FINE, costs_of, errors_of, score_of, space_of
from local_tables import summary_of

from objectives.frames import MeasuredFrames
from objectives.outcomes import Outcomes
from objectives.score import AsBuilt
from search.budgets.targets import Bound, Target
from search.config import SearchConfig
from search.deploy.exact_budget import exact_of, is_worse, materialise
from search.deploy.points import GIVEN, MATERIALISED, Point, pick_file, pick_target, pick_trial, tied_notice, wishes
from search.evidence.posterior import NO_EVIDENCE, Evidence
from search.layout import outcomes_in, outcomes_of, weights_in
from search.run.finished_trial import finished_trials, with_evidence
from search.run.run import Run
from search.run.summary import summarise
from search.run.tables import RunTables
from search.trial import Proposal, Trial
from spaces.allocation import Allocation
from spaces.errors import AllocationError, RunError, TargetError
from spaces.files import write_json
from spaces.sites import DROP, Operator, Site, Space

SPACE = space_of(branches=2, sizes=FINE)  # a size of 64 is all of a branch, which costs 1000
SITES = [site.name for site in SPACE.sites]
DENSE = {"macs": 2000, "params": 2000}

# number -> sizes, error, and the multipliers that it was proposed with
TRIALS: dict[int, tuple[tuple[int, int], float | None, dict[str, float] | None]] = {
    0: ((64, 64), 0.10, None),
    1: ((32, 32), 0.30, {SITES[0]: 0.0, SITES[1]: 0.0}),
    2: ((16, 16), 0.50, None),
    3: ((32, 64), 0.20, {SITES[0]: -2.0, SITES[1]: 2.0}),
    4: ((20, 20), None, None),  # failed
    5: ((48, 16), 0.45, None),  # as cheap as trial 1, and worse
}


def made(
    folder: Path, trials: dict[int, Any] = TRIALS, space: Space = SPACE, evidence: Evidence = NO_EVIDENCE, **options: Any
) -> Run:
    ended, names = [], [site.name for site in space.sites]
    for number, (sizes, error, multipliers) in trials.items():
        parameters = {} if multipliers is None else {"budget": 0.5, **multipliers}
        allocation = Allocation(dict(zip(names, sizes, strict=True)))
        proposal = Proposal(
            number=number,
            allocation=allocation,
            space="test",
            seed=0,
            label="dense" if number == 0 else None,
            parameters=parameters,
        )
        write_json(folder / "trials" / f"{number:04d}" / "allocation.json", proposal.to_dict())
        macs = costs_of(space).count(allocation, "macs")
        score = None if error is None else replace(score_of(allocation), error=error, costs={"macs": macs, "params": macs})
        reason = None if score else "ValueError: broken"
        ended.append(Trial(proposal=proposal, score=score, reason=reason, ended="2026-11-24T01:00:00+00:00"))
    facts = summary_of(DENSE, space, reach={"macs": (32, 2000), "params": (32, 2000)})
    found = with_evidence(finished_trials(ended, DENSE), evidence)
    RunTables(folder).write(found, summarise(facts, found, evidence), evidence)
    SearchConfig.from_flat({"model": "made-up", "measured_profile": True, **options}).dump(folder / "config.yaml")
    return Run(folder)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return made(tmp_path)


class Built:
    """An evaluator that makes errors up, and keeps what it was asked to measure."""

    def __init__(self, error: float = 0.25, images: int = 256, space: Space = SPACE, dropped: Sequence[str] = ()) -> None:
        frames = MeasuredFrames(schedules={(): 0.0}, dropped=dict.fromkeys(dropped, 0.1), images=images)
        self.dense = SimpleNamespace(
            space=space, costs=costs_of(space), profile=SimpleNamespace(errors=errors_of(space)), frames=frames,
            objective=SimpleNamespace(data=SimpleNamespace(profile_images=images)),
        )  # fmt: skip
        self.error, self.screened, self.trained = error, list[Allocation](), list[Allocation]()

    def as_built(self, allocation: Allocation) -> AsBuilt:
        """The wider the second branch, the less it diverges."""
        self.screened.append(allocation)
        return AsBuilt(divergence=1 / allocation[SITES[1]], changed=0.0)

    def evaluate(self, allocation: Allocation, seed: int, on_step: Any, weights: Path, on_rung: Any, outcomes: Path) -> Any:
        self.trained.append(allocation)
        return replace(score_of(allocation), error=self.error)


def built(run: Run, target: str, evaluator: Built) -> Point | None:
    return materialise(run, evaluator, pick_target(run, target), run.directory)  # type: ignore[arg-type]


# Picking


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("flops=50%", "flops50"),
        (" flops = 50 % ", "flops50"),
        ("flops=2.3G", "flops2.3G"),
        ("params=11M", "params11M"),
        ("latency=8ms", "latency8ms"),
        ("flops=50%,params=11M", "flops50-params11M"),
        ("../../flops=50%", "flops50"),
    ],
)
def test_a_folder_is_named_for_its_target(target: str, name: str) -> None:
    bounds = tuple(Bound(text=text, cost="macs", amount=1.0, is_percent=True) for text in target.split(","))
    assert Target(text=target, bounds=bounds).folder == name


@pytest.mark.parametrize(
    ("target", "number", "load"), [("flops=50%", 1, 1.0), ("flops=60%", 1, 1000 / 1200), ("flops=900", 2, 5 / 9)]
)
def test_the_best_under_a_target_is_picked(run: Run, target: str, number: int, load: float) -> None:
    point = pick_target(run, target)
    assert point.number == number
    assert point.load == pytest.approx(load)
    assert point.leaves_gap == (load < 0.95)
    assert f"trial {number}, the best under {target}" in point.describe()


def test_a_target_that_no_trial_meets_is_told_with_the_nearest(run: Run) -> None:
    with pytest.raises(TargetError, match=r"no trial of .* keeps flops=10%: the nearest is trial 2 with 500 MACs"):
        pick_target(run, "flops=10%")


@pytest.mark.parametrize(
    ("number", "message"),
    [(99, "has no trial 99: it has 6"), (-1, "has no trial -1"), (4, r"trial 4 of .* failed \(ValueError")],
)
def test_a_trial_that_is_none(run: Run, number: int, message: str) -> None:
    with pytest.raises(RunError, match=message):
        pick_trial(run, number)


def test_everything_that_was_asked_for_is_there_once(run: Run) -> None:
    found = wishes(run, ["flops=50%", "flops=50%", "params=60%"], [2, 3, 2], front=True)
    assert [wish.text for wish in found[:2]] == ["target flops=50%", "target params=60%"]
    assert [wish.text for wish in found[2:]] == [f"trial {number}" for number in (2, 3, 1, 0)]
    assert [wish.pick().name for wish in found] == ["flops50", "params60", "trial2", "trial3", "trial1", "trial0"]


def test_without_a_wish_it_is_what_was_searched_for(tmp_path: Path) -> None:
    run = made(tmp_path, target=["flops=50%", "flops=30%"])
    assert [wish.pick().number for wish in wishes(run)] == [1, 2]
    with pytest.raises(RunError, match="say which points to export: --target"):
        wishes(made(tmp_path))


def test_a_run_without_a_finished_trial(tmp_path: Path) -> None:
    run = made(tmp_path, {})
    for ask in (lambda: wishes(run, front=True), lambda: pick_target(run, "flops=50%")):
        with pytest.raises(RunError, match=r"no trial of .* has finished"):
            ask()
    with pytest.raises(RunError, match="has no trial 3: it has 0"):
        pick_trial(run, 3)


# Given allocations


def given(folder: Path, content: Any, name: str = "mine.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_given_allocation_is_a_point_that_the_search_has_not_evaluated(run: Run, tmp_path: Path) -> None:
    point = pick_file(run, given(tmp_path, dict(zip(SITES, (7, 9), strict=True))))
    assert (point.name, point.number, point.label) == ("allocation-mine", None, GIVEN)
    assert dict(point.allocation) == dict(zip(SITES, (7, 9), strict=True))
    assert "not evaluated by the search" in point.describe()


def test_one_that_a_trial_had_is_that_trial_whatever_number_the_file_says(run: Run, tmp_path: Path) -> None:
    saved = {"number": 2, "space": "test", "allocation": dict(zip(SITES, (32, 64), strict=True))}
    point = pick_file(run, given(tmp_path, saved, "allocation-2.json"))
    assert (point.name, point.number, point.error) == ("allocation-2", 3, 0.2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "holds no allocation"),
        ({"allocation": 3}, "holds no allocation"),
        ({"b0.hidden": 3}, "no size for site 'b1.hidden'"),
        ({"b0.hidden": 3, "b1.hidden": 99}, "b1.hidden cannot be 99: choose one of"),
        ({"b0.hidden": 3, "b1.hidden": "x"}, "size of b1.hidden must be a whole number, 0 or more"),
        ({"space": "heads", "allocation": {"b0.hidden": 3, "b1.hidden": 4}}, "is of space 'heads', and no trial"),
    ],
)
def test_a_file_that_holds_no_allocation_of_the_run(run: Run, tmp_path: Path, content: Any, message: str) -> None:
    path = given(tmp_path, content)
    with pytest.raises(AllocationError, match=message) as error:
        pick_file(run, path)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there(fails: Fails, run: Run, tmp_path: Path) -> None:
    line = fails("export", run.directory, "--allocation", tmp_path / "none.json")
    assert f"{tmp_path / 'none.json'} cannot be read as JSON: No such file or directory" in line


# Built on a budget


def test_a_point_is_built_on_the_budget_where_the_front_has_a_gap(run: Run) -> None:
    evaluator = Built()
    point = built(run, "flops=70%", evaluator)
    assert point is not None
    assert (point.name, point.number, point.label, point.error) == ("flops70-exact", None, MATERIALISED, 0.25)
    assert point.instead_of == (1, 0.3)
    step = 1000 / 64
    assert 1400 - step < costs_of(SPACE).count(point.allocation, "macs") <= 1400
    assert point.costs["macs"] == costs_of(SPACE).count(point.allocation, "macs")
    assert evaluator.trained == [point.allocation], "one short fine-tune"


def test_the_candidate_of_least_divergence_is_taken_and_named_for_its_trials(run: Run) -> None:
    """Trial 3 is the nearest above, and was proposed with the second branch worth much more than the profile says."""
    evaluator = Built()
    point = built(run, "flops=70%", evaluator)
    assert point is not None
    assert len(evaluator.screened) == len(set(evaluator.screened)) == 3, (
        "trial 3's, the mean of both, and trial 1's: the profile"
    )
    assert point.allocation[SITES[1]] == max(allocation[SITES[1]] for allocation in evaluator.screened)
    assert point.allocation[SITES[1]] > point.allocation[SITES[0]]
    assert point.between == (3,)
    assert "from the multipliers of trial 3, not evaluated by the search" in point.describe()


def test_without_images_to_screen_on_the_mean_of_both_sides_is_taken(run: Run) -> None:
    evaluator = Built(images=0)
    point = built(run, "flops=70%", evaluator)
    assert point is not None and not evaluator.screened
    assert point.between == (1, 3)
    assert point.allocation[SITES[1]] > point.allocation[SITES[0]]


def test_where_nothing_is_known_of_the_neighbours_the_profile_decides(run: Run) -> None:
    for path in run.directory.glob("trials/*/allocation.json"):
        path.unlink()
    point = built(run, "flops=70%", Built())
    assert point is not None and point.between == ()
    assert abs(point.allocation[SITES[0]] - point.allocation[SITES[1]]) <= 1, "both branches are alike"
    assert "from the profile" in point.describe()


def test_nothing_is_built_where_the_best_trial_is_on_the_budget(run: Run) -> None:
    evaluator = Built()
    assert built(run, "flops=50%", evaluator) is None
    assert not evaluator.trained


def test_dropped_branches_stay_dropped_and_the_others_fill_the_budget(tmp_path: Path) -> None:
    """Half of one branch is all that the best trial has; the other branch would cost the second half of the budget."""
    offered = {}
    for branch, rivals in SPACE.branches.items():
        site = Site(name=f"{branch}.branch", branch=branch, kind="branch", choices=(0, 1))
        offered[branch] = (*rivals, Operator(name=DROP, sites=(site,)))
    space = Space(name="test", branches=offered)
    trials = {0: ((64, 1, 64, 1), 0.1, None), 1: ((32, 1, 64, 0), 0.2, None), 2: ((20, 1, 20, 1), 0.4, None)}
    for dropped, expected in ((("b1", "b0"), (64, 1, 64, 0)), ((), (32, 1, 32, 1))):
        run = made(tmp_path / str(len(dropped)), trials, space)
        point = built(run, "flops=50%", Built(space=space, dropped=dropped))
        assert point is not None
        assert tuple(point.allocation[site.name] for site in space.sites) == expected


def test_several_bounds_are_kept_together(run: Run) -> None:
    point = built(run, "flops=90%,params=70%", Built())
    assert point is not None
    assert set(point.limits) == {"macs", "params"}
    assert 1400 - 1000 / 64 < point.costs["params"] <= 1400


def test_a_run_of_recipes_only_has_nothing_to_build_from(tmp_path: Path) -> None:
    run = made(tmp_path, recipe="magnitude", target=["flops=50%"])
    with pytest.raises(RunError, match="holds the recipe 'magnitude' alone"):
        built(run, "flops=70%", Built())


def answers(path: Path, wrong: Sequence[int], images: int = 20) -> None:
    """Keep that these of so many images are answered wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Outcomes(torch.isin(torch.arange(images), torch.tensor(wrong)), torch.zeros(images)).save(path)


def test_a_built_point_is_worse_only_beyond_chance(run: Run, tmp_path: Path) -> None:
    """Of images that one of two alone has wrong, six of six are more than chance (2/64 < 0.05), and five of five are not."""
    best = pick_target(run, "flops=70%")
    point = replace(exact_of(best), error=0.3)
    assert best.number is not None and best.error == 0.3
    assert not is_worse(run, point, best, tmp_path), "nothing is known of the images, and the errors are equal"
    assert is_worse(run, replace(point, error=0.31), best, tmp_path)
    answers(outcomes_of(run.directory, best.number), [19])
    for wrong, worse in ((6, True), (5, False)):
        answers(outcomes_in(weights_in(tmp_path, point.name)), [*range(wrong), 19])
        assert is_worse(run, replace(point, error=(wrong + 1) / 20), best, tmp_path) is worse


# Trials that cannot be told apart


def tied(folder: Path, **options: Any) -> Run:
    """Trials 1 and 2 differ by 0.01 ± 0.0196; trial 2 is the cheaper one."""
    covariance = np.array([[1e-4, 0.5e-4], [0.5e-4, 1e-4]])
    return made(folder, evidence=Evidence(numbers=(1, 2), means=np.array([0.30, 0.31]), covariance=covariance), **options)


def test_what_cannot_be_told_apart_is_part_of_the_point(tmp_path: Path) -> None:
    run = tied(tmp_path)
    accurate, cheap = pick_target(run, "flops=50%"), pick_target(run, "flops=50%", "cheap")
    assert (accurate.number, accurate.tied, cheap.number, cheap.tied) == (1, (2,), 2, (1,))
    assert accurate.expected == run.trial(1).expected
    origin = accurate.origin("f")
    assert (origin["tied"], origin["expected"]["mean"]) == ([2], 0.30)
    assert tied_notice(run, accurate) == (
        "2 trials cannot be told apart under flops=50%: the most accurate was taken "
        "(--prefer cheap takes trial 2, 25.0% of MACs)"
    )
    assert tied_notice(run, cheap, "cheap").endswith(
        ": the cheapest was taken (--prefer accurate takes trial 1, 50.0% of MACs)"
    )
    assert [wish.pick().number for wish in wishes(run, ["flops=50%"], prefer="cheap")] == [2]
    assert [wish.pick().number for wish in wishes(run, ["flops=50%"])] == [1]


def test_a_point_is_the_same_whatever_is_believed_of_it(tmp_path: Path) -> None:
    point = pick_target(tied(tmp_path), "flops=50%")
    later = replace(point, expected=None, tied=())
    assert later.restored(json.loads(json.dumps(point.origin("f"))), point.allocation, "f") == later


# What an export keeps


def test_a_point_is_restored_from_what_its_export_kept(run: Run) -> None:
    picked = pick_target(run, "flops=70%")
    point = built(run, "flops=70%", Built())
    assert point is not None
    for before, after in ((picked, picked), (exact_of(picked), point)):
        kept = json.loads(json.dumps(after.origin("f")))
        assert before.restored(kept, after.allocation, "f") == after
        assert before.restored(kept, after.allocation, "g") is None, "another run"
    assert picked.restored(point.origin("f"), point.allocation, "f") is None
    other = pick_target(run, "flops=50%")
    assert other.restored(picked.origin("f"), picked.allocation, "f") is None, "another target"
    changed = picked.allocation.replace({SITES[0]: 1})
    assert picked.restored(picked.origin("f"), changed, "f") is None, "another allocation"
