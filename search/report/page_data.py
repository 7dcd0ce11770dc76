"""What the page shows of one run: what its templates read, and the data for its script."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from objectives.cost.spec import MAIN, CostSpec
from search.evidence.intervals import Interval
from search.evidence.posterior import NO_EVIDENCE, Evidence
from search.report.audit_tables import AuditTable, audit_tables
from search.report.first_shown import FirstShown, first_shown
from search.report.front_plot import drawn
from search.report.script_data import ScriptData, Sensitivity, script_data, sensitivity_of
from search.report.trial_texts import TrialTexts, number_text, reference_name, texts_of
from search.report.verdict import best_under, mark_of, tied_under, verdicts
from search.run.activity import RunningTrial
from search.run.audit_file import Audit
from search.run.edge import lower_edges
from search.run.finished_trial import FinishedTrial
from search.run.first_answer import FirstAnswer, read_first_answer
from search.run.options import stored_options
from search.run.run import Run
from search.run.summary import RunSummary
from search.trial import DENSE
from spaces.errors import CheckpointError, RunError


@dataclass(frozen=True, kw_only=True)
class BestTrial:
    """The best trial under a target: the target, its number, word of a cost -> what it keeps of that, and its figures."""

    under: str
    number: int
    keeps: Mapping[str, str]
    texts: TrialTexts


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A row of the page's table.

    Attributes:
        number: of the trial.
        label: of it.
        is_front: whether it is on the front.
        mark: of `search.report.verdict.mark_of`.
        why: what the mark says.
        texts: its figures.
    """

    number: int
    label: str
    is_front: bool
    mark: str
    why: str
    texts: TrialTexts


@dataclass(frozen=True, kw_only=True)
class RunningRow:
    """A trial that runs, and its error at its last rung."""

    trial: RunningTrial
    error: str


@dataclass(frozen=True, kw_only=True)
class StoppedRow:
    """A trial that was stopped early: what it keeps of the main cost, and why it was."""

    number: int
    kept: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class FailedRow:
    """A trial without a result, and what it left on stderr."""

    number: int
    state: str
    label: str
    reason: str
    stderr: str


@dataclass(frozen=True, kw_only=True)
class Content:
    """All that the page shows of a run. Texts of the search are as they are; whoever shows them escapes them.

    Attributes:
        run: directory of the run, as the copied export command names it.
        options: that it was launched with, for the comparison with other runs.
        summary: what it came to.
        bests: of every target that has one.
        verdicts: of every target, what is known of its best trial.
        edges: of the best trials that are among the smallest that the search proposes, what to try next.
        reference: what the dense error is that trials are compared with.
        rows: of the table: the front from its cheapest point, then the baselines that are not on it.
        running: trials that run now.
        stopped: trials that were stopped early.
        failed: trials without a result.
        audit: tables of its audit.
        first: what budgets cost before any trial.
        data: what the script reads.
    """

    run: str
    options: Mapping[str, Any]
    summary: RunSummary
    bests: tuple[BestTrial, ...]
    verdicts: tuple[str, ...]
    edges: tuple[str, ...]
    reference: str
    rows: tuple[TableRow, ...]
    running: tuple[RunningRow, ...]
    stopped: tuple[StoppedRow, ...]
    failed: tuple[FailedRow, ...]
    audit: tuple[AuditTable, ...]
    first: tuple[FirstShown, ...]
    data: ScriptData


def content_of(run: Run, live: bool = False) -> Content:
    """`content` of a run as it is now; what runs is part of it only where it is shown live."""
    return content(
        run.summary,
        run.ended,
        run.trials.to_csv(index=False),
        run=str(run.directory),
        audit=run.audit,
        running=run.running if live else (),
        stderr=run.stderr,
        sensitivity=_sensitivity_of(run),
        first=_first_of(run),
        evidence=run.evidence,
        options=stored_options(run.directory),
    )


def content(
    summary: RunSummary,
    trials: Sequence[FinishedTrial],
    csv: str,
    run: str = "RUN",
    audit: Audit | None = None,
    running: Sequence[RunningTrial] = (),
    stderr: Callable[[int], str] = lambda number: "",
    sensitivity: Sensitivity | None = None,
    first: FirstAnswer | None = None,
    evidence: Evidence = NO_EVIDENCE,
    options: Mapping[str, Any] | None = None,
) -> Content:
    """All that the page shows of a run.

    Trials that are not `drawn` are listed.

    Args:
        summary: of the run.
        trials: all that have ended.
        csv: trials.csv, to be saved from the page.
        run: directory of the run.
        audit: of the run, if there is one.
        running: trials that run now.
        stderr: number of a failed trial -> what it left.
        sensitivity: of the run's profile, if it has one.
        first: what budgets cost before any trial, where that was measured.
        evidence: of the run, for differences from the dense model.
        options: that the run was launched with.
    """
    points, options = drawn(trials), options or {}
    stopped = [trial for trial in trials if trial.state == "PRUNED"]
    texts = _texts(summary, (*points, *stopped), evidence)
    return Content(
        run=run,
        options=options,
        summary=summary,
        bests=_bests(summary, texts),
        verdicts=verdicts(summary),
        edges=tuple(sentence for _, sentence in lower_edges(summary, options["band"])) if "band" in options else (),
        reference=reference_name(summary.dense),
        rows=_table(summary, points, texts),
        running=tuple(RunningRow(trial=trial, error=number_text(trial.error, ".2%")) for trial in running),
        stopped=tuple(_stopped(trial, texts[trial.number]) for trial in stopped),
        failed=tuple(_failed(trial, stderr(trial.number)) for trial in trials if trial.number not in texts),
        audit=() if audit is None else audit_tables(audit),
        first=() if first is None else first_shown(first),
        data=script_data(run, summary, points, stopped, texts, sensitivity, csv),
    )


def _sensitivity_of(run: Run) -> Sensitivity | None:
    try:
        return None if run.profile is None else sensitivity_of(run.profile, run.space)
    except CheckpointError:  # whoever needs the profile is told; a search writes its report without
        return None


def _first_of(run: Run) -> FirstAnswer | None:
    try:
        return read_first_answer(run.directory)
    except RunError:  # a launch tells, and a search writes its report without
        return None


def _texts(summary: RunSummary, trials: Sequence[FinishedTrial], evidence: Evidence) -> dict[int, TrialTexts]:
    """Number -> figures."""
    dense = next((trial.number for trial in trials if trial.label == DENSE and trial.number in evidence), None)

    def lost(number: int) -> Interval | None:
        return None if dense is None or number not in evidence else evidence.difference(number, dense)

    return {trial.number: texts_of(trial, summary, lost(trial.number)) for trial in trials}


def _bests(summary: RunSummary, texts: Mapping[int, TrialTexts]) -> tuple[BestTrial, ...]:
    several = len(summary.targets) > 1
    return tuple(
        BestTrial(
            under=budget.text if several else "the target",
            number=number,
            keeps=_keeps(texts[number], summary),
            texts=texts[number],
        )
        for budget, number in zip(summary.targets, summary.best, strict=True)
        if number is not None and number in texts
    )


def _keeps(texts: TrialTexts, summary: RunSummary) -> dict[str, str]:
    """Word of a cost -> what a trial keeps of it; a measured cost's amount is there as well."""
    return {spec.word: f"keeps {_kept(spec, texts)}" for spec in summary.costs}


def _kept(spec: CostSpec, texts: TrialTexts) -> str:
    found = texts.costs[spec.name]
    return f"{found.kept}, {found.amount}" if spec.is_measured else found.kept


def _table(summary: RunSummary, points: Sequence[FinishedTrial], texts: Mapping[int, TrialTexts]) -> tuple[TableRow, ...]:
    front = {point.number for point in summary.front}
    ordered = sorted(points, key=lambda trial: (trial.number not in front, trial.costs[MAIN.name], trial.number))
    return tuple(
        TableRow(
            number=trial.number,
            label=trial.label or "",
            is_front=trial.number in front,
            mark=mark_of(trial.number, summary),
            why=_why(trial.number, summary),
            texts=texts[trial.number],
        )
        for trial in ordered
        if trial.number in front or trial.label
    )


def _why(number: int, summary: RunSummary) -> str:
    """What the mark of a trial says."""
    claims = [f"the best under {text}" for text in best_under(number, summary)]
    claims += [f"cannot be told apart from the best under {text}" for text in tied_under(number, summary)]
    return "; ".join(claims)


def _stopped(trial: FinishedTrial, texts: TrialTexts) -> StoppedRow:
    return StoppedRow(number=trial.number, kept=texts.costs[MAIN.name].kept, reason=trial.reason or "")


def _failed(trial: FinishedTrial, stderr: str) -> FailedRow:
    reason = "its error or a cost is not finite" if trial.is_complete else trial.reason or "no reason given"
    return FailedRow(number=trial.number, state=trial.state, label=trial.label or "", reason=reason, stderr=stderr)
