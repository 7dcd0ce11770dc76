"""The tables of a run that grows: as if written at once, but each trial is made text once."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from local_pages import framed, write_tables
from local_searches import opened, score_of, searched, space_of
from local_tables import finished, space_with, summary_of

from search.driver.observer import Observer
from search.driver.publisher import Publisher
from search.layout import SUMMARY
from search.run import tables
from search.run.finished_trial import FinishedTrial
from search.run.run import Run
from search.run.summary import front_point
from search.run.tables import RunTables, read_tables
from search.run.trial_table import csv_lines, trial_table
from search.study.study import Study
from search.trial import Outcome, Proposal
from spaces.allocation import Allocation
from spaces.errors import RunError
from spaces.sites import Site

DENSE = {"macs": 400, "params": 120}
SITES = [Site(name="b0.hidden", branch="b0", kind="ffn_hidden", choices=(1, 2))]


def ended(number: int, **changes: Any) -> FinishedTrial:
    return replace(finished(number, DENSE, DENSE, allocation=Allocation({"b0.hidden": 1})), **changes)


TRIALS = [
    ended(0),
    ended(1, state="FAIL", error=None, kl=None, costs={}, kept={}, steps=None, reason='a "quoted", cause'),
    ended(3, error=1.0, label="uniform", seconds=1e-7),
    ended(4, state="FAIL", error=None, seconds=None, reason="two\nlines, and\r more"),
    ended(2, state="PRUNED", error=None, rung=50, rung_error=0.75),
]


@pytest.mark.parametrize("rows", [[], TRIALS[:3], TRIALS, TRIALS[3:4]], ids=["none", "lines", "a broken line", "one"])
def test_lines_of_a_table_are_its_csv(rows: Sequence[FinishedTrial]) -> None:
    facts = summary_of(DENSE, space_with(SITES))
    table = trial_table(rows, facts.costs, facts.sites)
    lines = csv_lines(table)
    assert len(lines) == len(rows) + 1
    assert "".join(lines) == table.to_csv(index=False)


def test_tables_that_grow_are_those_that_are_written_at_once(tmp_path: Path) -> None:
    """Line by line, whatever comes between two trials; read back, they have the same trials."""
    facts = summary_of(DENSE, space_with(SITES), front=(front_point(TRIALS[2]), front_point(TRIALS[0])), bests=())
    (tmp_path / "grown").mkdir()
    (tmp_path / "once").mkdir()
    growing = RunTables(tmp_path / "grown")
    for count in range(len(TRIALS) + 1):
        growing.write(sorted(TRIALS[:count], key=lambda trial: trial.number), summary_of(DENSE, space_with(SITES)))
    rows = sorted(TRIALS, key=lambda trial: trial.number)
    growing.write(rows, facts)
    RunTables(tmp_path / "once").write(rows, facts)
    for path in sorted((tmp_path / "once").iterdir()):
        assert (tmp_path / "grown" / path.name).read_bytes() == path.read_bytes()
    table, _ = read_tables(tmp_path / "grown")
    assert table["number"].tolist() == [0, 1, 2, 3, 4]
    assert len((tmp_path / "grown" / "pareto.csv").read_text().splitlines()) == 3


def test_a_trial_is_made_text_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often tables are written, after every trial in a search with one worker."""
    made, space = list[int](), space_of()

    def counted(trials: Sequence[FinishedTrial], *given: Any) -> Any:
        made.extend(trial.number for trial in trials)
        return trial_table(trials, *given)

    monkeypatch.setattr(tables, "trial_table", counted)
    parametrisation = searched(space, [{"macs": 2000}], [0.5])
    study = Study(tmp_path, parametrisation, ("error", "macs"), "random", 0)
    opened(study)
    shown = Publisher(study, summary_of(parametrisation.budgets.costs.dense, space), None, Observer(), at_once=True)
    shown.write_tables()
    proposals = [study.ask() for _ in range(6)]
    for proposal in reversed(proposals):
        assert isinstance(proposal, Proposal) and proposal.allocation is not None
        shown.ended(study.tell(Outcome(number=proposal.number, score=score_of(proposal.allocation))))
        shown.waiting()
    assert made == [5, 4, 3, 2, 1, 0]
    assert read_tables(tmp_path)[0]["number"].tolist() == [0, 1, 2, 3, 4, 5]


def test_the_report_is_made_again_where_a_trial_has_begun(tmp_path: Path) -> None:
    """A launch with nothing left to do leaves the one that it began with; no front is drawn before there is a trial."""
    space = space_of()
    parametrisation = searched(space, [{"macs": 2000}], [0.5])
    study = Study(tmp_path, parametrisation, ("error", "macs"), "random", 0)
    opened(study)
    shown = Publisher(study, summary_of(parametrisation.budgets.costs.dense, space), None, Observer(), at_once=True)
    report, pictures = tmp_path / "report.html", [tmp_path / "pareto.png", tmp_path / "pareto.svg"]
    shown.write()
    assert [path.exists() for path in (report, *pictures)] == [True, False, False]
    report.unlink()
    shown.finish()
    assert not report.exists()
    proposal = study.ask()
    assert isinstance(proposal, Proposal) and proposal.allocation is not None
    shown.started(proposal)
    shown.ended(study.tell(Outcome(number=proposal.number, score=score_of(proposal.allocation))))
    shown.finish()
    assert [path.exists() for path in (report, *pictures)] == [True, True, True]


# Tokens, and branches that are left out


def test_tokens_and_left_out_branches_come_back(tmp_path: Path) -> None:
    """From pareto.json, as a space in which schedules are valid, and from trials.csv; their sizes may be 0."""
    summary, table = framed()
    write_tables(tmp_path, summary, table)
    run = Run(tmp_path)
    assert run.space.tokens == summary.spaces["contract"].tokens
    assert run.space.branches == summary.spaces["contract"].branches
    assert [site.name for site in run.summary.sites[-12:]] == [f"blocks.{block}.tokens" for block in range(12)]
    one = run.ended[1].allocation
    assert run.space.schedule(one) == (196, 196, 196, 182, 168, 154, 140, 126, 112, 98, 98, 0)
    assert one["blocks.3.mlp.branch"] == 0
    run.space.validate(one.replace({"blocks.3.mlp.hidden": 1536}))
    assert {point.number: point.allocation for point in run.summary.front} == {
        trial.number: trial.allocation for trial in run.front
    }
    assert run.summary == summary


@pytest.mark.parametrize(("site", "kind"), [("blocks.0.attn.qk", "above 0"), ("blocks.0.tokens", "above 0")])
def test_a_size_of_0_is_refused_where_there_is_none(tmp_path: Path, site: str, kind: str) -> None:
    summary, table = framed()
    write_tables(tmp_path, summary, table)
    content = json.loads((tmp_path / SUMMARY).read_text())
    content["front"][0]["allocation"][site] = 0
    (tmp_path / SUMMARY).write_text(json.dumps(content))
    with pytest.raises(RunError, match=rf"front\[0\]\.allocation\.{site} must be a whole number {kind}, got 0"):
        Run(tmp_path)
    table.loc[2, site] = 0
    write_tables(tmp_path, summary, table)
    with pytest.raises(RunError, match=rf"line 4: {site} must be a whole number {kind}, got '0'"):
        Run(tmp_path)


@pytest.mark.parametrize("site", ["blocks.3.mlp.branch", "blocks.11.tokens"])
def test_a_size_below_0_is_refused(tmp_path: Path, site: str) -> None:
    summary, table = framed()
    table.loc[2, site] = -1
    write_tables(tmp_path, summary, table)
    with pytest.raises(RunError, match=rf"line 4: {site} must be a whole number, 0 or more, got '-1'"):
        Run(tmp_path)
