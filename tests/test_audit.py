"""Audits: which trials are measured, how orders are compared, and that an audit goes on where it was."""

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from local_launches import Silent, config_of
from local_pages import write_report
from local_runs import DIGITS, MODEL, Fails
from local_tables import finished
from test_report import Page, summary
from test_report import trials_of as report_trials

import run_search
from search import SearchConfig, audit, launch, open_run
from search.fidelity.rank_correlation import agreement, candidates, similar, spread_over, tau
from search.report.audit_tables import BAND, audit_tables
from search.run import trial_table
from search.run.audit_file import Audit, Steps, read_audit, write_audit
from search.run.finished_trial import FinishedTrial
from search.run.run import Run
from search.run.summary import front_point
from search.run.summary_file import write_summary
from search.run.tables import RunTables
from spaces.errors import ConfigError, RunError


def trials_of(costs: list[int]) -> list[FinishedTrial]:
    return [finished(number, {"macs": macs}, {"macs": 1000}) for number, macs in enumerate(costs)]


def numbers_of(trials: Iterable[FinishedTrial]) -> list[int]:
    return [trial.number for trial in trials]


# Which trials


def test_neither_the_dense_model_nor_recipes_nor_unfinished_trials() -> None:
    labels = ["dense", "warm start", "uniform", "random", "vtp", "heads-graph", None, None, None]
    states = ["COMPLETE"] * 7 + ["PRUNED", "FAIL"]
    trials = [
        replace(trial, label=label, state=state)
        for trial, label, state in zip(trials_of([100] * 9), labels, states, strict=True)
    ]
    assert numbers_of(candidates(trials)) == [1, 2, 3, 6]


@pytest.mark.parametrize(
    ("count", "expected"), [(3, [0, 4, 8]), (5, [0, 2, 4, 6, 8]), (9, list(range(9))), (20, list(range(9)))]
)
def test_points_are_spread_from_end_to_end(count: int, expected: list[int]) -> None:
    shuffled = trials_of([100 * (number + 1) for number in range(9)])
    Random(0).shuffle(shuffled)
    assert numbers_of(spread_over(shuffled, "macs", count)) == expected


def test_similar_costs_are_the_fullest_band() -> None:
    def found(*costs: int) -> list[float]:
        return [trial.costs["macs"] for trial in similar(trials_of(list(costs)), "macs")]

    assert found(100, 105, 200, 210, 219, 221, 300, 329, 331, 500) == [200, 210, 219]
    assert found(100, 105, 200, 205) == [100, 105], "the cheaper of equals"
    assert found(100, 200, 300) == [100]


# How orders are compared


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3, 4], [1, 2, 4, 3], 4 / 6),  # 5 pairs agree, 1 does not
        ([1, 2, 3], [1, 1, 2], 2 / math.sqrt(3 * 2)),  # tau-b: one tie of three pairs
        ([1, 2, 3], [5, 5, 5], None),
        ([1, 2], [1, 2], None),
        ([], [], None),
    ],
)
def test_tau_by_hand(first: list[float], second: list[float], expected: float | None) -> None:
    assert tau(first, second) == (None if expected is None else pytest.approx(expected))


def test_agreement_by_hand() -> None:
    found = agreement([0.1, 0.2, 0.3, 0.4], [[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.5, 0.4]], [0.4, 0.3, 0.2, 0.1])
    assert found.count == 4
    assert found.tau == pytest.approx(5 / math.sqrt(6 * 5)), "means 0.1, 0.2, 0.4, 0.4"
    assert list(found.per_seed) == [1.0, pytest.approx(4 / 6)]
    assert found.mean == pytest.approx(5 / 6)
    assert found.spread == pytest.approx(1 / 3 / math.sqrt(2))
    assert found.between_seeds == pytest.approx(4 / 6)
    assert found.test == -1.0
    assert found.by_chance == pytest.approx(math.sqrt(2 * 13 / (9 * 4 * 3)))


def test_what_is_undefined_is_none_and_shown_as_a_dash(tmp_path: Path) -> None:
    found = agreement([0.1, 0.2, 0.3], [[0.1, 0.2, 0.3], [0.5, 0.5, 0.5]], [0.1, 0.2, 0.3])
    assert found.per_seed == (1.0, None)
    assert (found.mean, found.spread, found.between_seeds) == (None, None, None)
    steps = Steps(short=1, long=2)
    whole = Audit(factor=2, steps=steps, seeds=(1, 2), cost="macs", points=(), front=found, similar=found, environment={})
    write_audit(tmp_path, whole)
    assert read_audit(tmp_path) == whole
    shown, _ = audit_tables(whole)
    assert shown.rows[0][2:5] == ("1.00", "–", "–")


def test_along_a_front_the_short_error_is_the_order_of_cost() -> None:
    """Why there is a second figure: whatever the long errors are, the first one compares them with the costs alone."""
    costs, errors = [1, 2, 3, 4, 5], [0.5, 0.4, 0.3, 0.2, 0.1]
    for long in ([0.3, 0.5, 0.2, 0.4, 0.1], [0.1, 0.2, 0.3, 0.4, 0.5]):
        assert tau(errors, long) == pytest.approx(-(tau([float(cost) for cost in costs], long) or 0))


# Audits of runs


# Within a band so narrow that nearly all trials are of similar cost.
OPTIONS: dict[str, Any] = {"steps": 2, "trials": 12, "sampler": "random", "target": ["flops=60%"], "band": 0.92}


def with_front(run: Run, numbers: list[int]) -> Run:
    """The run with other points on its front: that of an untrained model is a matter of luck."""
    chosen = sorted((trial for trial in run.ended if trial.number in numbers), key=lambda trial: trial.costs["macs"])
    write_summary(run.directory, replace(run.summary, front=tuple(map(front_point, chosen))))
    return open_run(run.directory)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with the dense model and five others on its front."""
    made = launch(config_of(tmp_path_factory.mktemp("audit"), **OPTIONS), Silent())
    return with_front(made, [0, *numbers_of(spread_over(candidates(made.ended), "macs", 5))])


@pytest.fixture(scope="module")
def audited(run: Run) -> Audit:
    return audit(run, points=3, factor=2)


@pytest.mark.slow
def test_an_audit_measures_what_it_says(run: Run, audited: Audit) -> None:
    assert (audited.steps, audited.seeds, audited.factor) == (Steps(short=2, long=4), (1, 2), 2)
    assert sum(point.front for point in audited.points) == audited.front.count == 3
    assert sum(point.similar for point in audited.points) == audited.similar.count == 3
    lines = [json.loads(line) for line in (run.directory / "audit.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * len(audited.points)
    for point in audited.points:
        assert point.short == run.trial(point.number).objective("error")
        assert point.label != "dense"
        assert point.number in numbers_of(run.front) or not point.front
        ours = [line for line in lines if line["trial"] == point.number]
        assert [line["seed"] for line in ours] == [1, 2]
        assert {line["steps"] for line in ours} == {4}
        assert list(point.long) == [line["error"] for line in ours]
        assert list(point.test) == [line["test_error"] for line in ours]
        assert point.mean == pytest.approx(sum(point.long) / 2)
    costs = [run.trial(point.number).costs["macs"] for point in audited.points if point.similar]
    assert max(costs) <= BAND * min(costs)
    assert open_run(run.directory).audit == audited


@pytest.mark.slow
def test_the_long_fine_tune_is_that_of_a_search_with_so_many_steps(run: Run, audited: Audit) -> None:
    """A search of 4 steps with seed 1 has the same warm starts."""
    options = {**OPTIONS, "steps": 4, "seed": 1, "trials": 7, "output": str(run.directory.parent / "longer")}
    longer = launch(SearchConfig.from_flat({**run.config.flat(), **options}), Silent())
    errors = {trial.allocation: trial.error for trial in longer.ended}
    compared = [point for point in audited.points if run.trial(point.number).allocation in errors]
    assert compared
    for point in compared:
        assert point.long[0] == errors[run.trial(point.number).allocation]


@pytest.mark.slow
def test_an_audit_goes_on_where_it_was(run: Run, audited: Audit) -> None:
    path = run.directory / "audit.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:30])  # killed while it wrote the third
    seen: list[str] = []
    again = audit(run, points=3, factor=2, progress=lambda what, done, total: seen.append(what))
    assert replace(again, environment={}) == replace(audited, environment={})
    measured = list(dict.fromkeys(what for what in seen if what.startswith("audit")))
    assert len(measured) == len(lines) - 2
    assert measured[0].startswith(f"audit 3 of {len(lines)}: trial ")
    assert len(path.read_bytes().splitlines()) == len(lines)
    seen.clear()
    audit(run, points=3, factor=2, progress=lambda what, done, total: seen.append(what))
    assert not seen, "nothing was left to do"


@pytest.mark.slow
def test_a_short_front_has_no_tau_but_trials_of_similar_cost_do(run: Run, tmp_path: Path) -> None:
    """All trials but three lose their place: the front is one point, the band of similar costs three."""
    copied = tmp_path / "run"
    shutil.copytree(run.directory, copied)
    trials = run.trials.copy()
    chosen = numbers_of(similar(candidates(run.ended), "macs"))[:3]
    assert len(chosen) == 3
    trials.loc[~trials["number"].isin((0, *chosen)), "state"] = "FAIL"
    done = set(trials["number"][trials["state"] == "COMPLETE"])
    front = tuple(point for point in run.summary.front if point.number in done)
    RunTables(copied).write(trial_table.trials_of(trials, run.summary), replace(run.summary, front=front, bests=(None,)))
    found = audit(with_front(open_run(copied), [0, chosen[0]]), points=3, factor=2)
    assert found.front.count == 1
    assert (found.front.tau, found.front.by_chance) == (None, None)
    assert found.similar.count == 3
    assert found.similar.by_chance is not None


@pytest.mark.slow
def test_other_steps_are_measured_anew(run: Run, audited: Audit) -> None:
    before = len((run.directory / "audit.jsonl").read_text().splitlines())
    found = audit(run, points=3, factor=3)
    assert found.steps.long == 6
    assert len((run.directory / "audit.jsonl").read_text().splitlines()) == 2 * before
    audit(run, points=3, factor=2)


@pytest.mark.slow
def test_page_and_terminal_show_it(run: Run, audited: Audit, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--points", "3", "--factor", "2", "--seeds", "2"]
    assert run_search.main(["audit", str(run.directory), *arguments]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    page = Page((run.directory / "report.html").read_text(encoding="utf-8")).words
    assert "Audit of the short fine-tune" in page
    for table in audit_tables(audited):
        assert " ".join((table.title, *table.columns)) in page
        assert table.title in printed
        for row in table.rows:
            assert " ".join(filter(None, row)) in page
            assert row[0] in printed


def test_a_page_without_an_audit_says_nothing_of_it(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", summary(), report_trials())
    assert "Audit" not in Page((tmp_path / "report.html").read_text(encoding="utf-8")).words


@pytest.mark.slow
def test_a_launch_with_an_audit(run: Run) -> None:
    stages: list[str] = []

    class Watching(Silent):
        def stage(self, what: str, done: int, total: int) -> None:
            stages.append(what)

    folder = run.directory.parent
    options = {**OPTIONS, "steps": 1, "audit": 3, "output": str(folder / "audited at once")}
    found = launch(config_of(folder, **options), Watching()).audit
    assert found is not None
    assert found.steps == Steps(short=1, long=10)
    assert stages[-1].startswith("audit ")
    stages.clear()
    launch(config_of(folder, **options), Watching())
    assert not any(what.startswith("audit") for what in stages)


@pytest.mark.slow
def test_too_few_trials(checkpoint: Path, tmp_path: Path, fails: Fails) -> None:
    line = fails("launch", *MODEL, "--checkpoint", checkpoint, *DIGITS, "--output", tmp_path / "run", "--audit", "3")
    assert "an audit needs 3 finished trials besides the dense model and recipes, but" in line
    assert "has 1: search with more --trials" in line
    assert open_run(tmp_path / "run").audit is None
    assert "an audit needs 3 finished trials" in fails("audit", tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--points", "2"), "points of an audit must be at least 3, got 2"),
        (("--factor", "1"), "factor of an audit must be at least 2, got 1"),
        (("--seeds", "1"), "seeds of an audit must be at least 2, got 1"),
        (("--points", "many"), "argument --points: invalid int value: 'many'"),
    ],
)
def test_wrong_arguments(fails: Fails, finished: Path, arguments: tuple[str, ...], words: str) -> None:
    assert words in fails("audit", finished, *arguments)


def test_folder_without_a_run(fails: Fails, tmp_path: Path) -> None:
    assert f"no search in {tmp_path}" in fails("audit", tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"audit": 2}, "audit must be 0 or at least 3, got 2"),
        ({"audit": -1}, "audit must be 0 or at least 3"),
        ({"audit": 3, "recipe": "magnitude", "target": ["flops=50%"]}, "an audit needs a search"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SearchConfig.from_flat(options)


@pytest.mark.slow
def test_trials_without_a_fine_tune_have_none_to_audit(tmp_path: Path) -> None:
    run = launch(config_of(tmp_path, **{**OPTIONS, "steps": 0, "trials": 2}), Silent())
    with pytest.raises(RunError, match="there is no short fine-tune to audit"):
        audit(run)
