"""The tables of a run that grows: as if written at once, but each trial is made text once."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from local_searches import opened, score_of, searched, space_of
from local_tables import finished, space_with, summary_of

from search.driver.observer import Observer
from search.driver.publisher import Publisher
from search.run import tables
from search.run.finished_trial import FinishedTrial
from search.run.summary import front_point
from search.run.tables import RunTables, read_tables
from search.run.trial_table import csv_lines, trial_table
from search.study.study import Study
from search.trial import Outcome, Proposal
from spaces.allocation import Allocation
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
    facts = summary_of(DENSE, space_with(SITES), front=(front_point(TRIALS[2]), front_point(TRIALS[0])), best=())
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
