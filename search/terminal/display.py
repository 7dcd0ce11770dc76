"""What a search shows while it runs: a live table in a terminal, plain lines elsewhere."""

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from objectives.cost.spec import COSTS, MAIN, CostSpec, counted_costs, known_costs
from objectives.runtime.progress import Step
from objectives.score import Score
from objectives.units import format_duration, format_kept, format_size
from search.driver.observer import Observer
from search.driver.outlook import Outlook
from search.report.verdict import TIED, expected_text
from search.run.first_answer import FirstAnswer
from search.run.summary import RunSummary
from search.terminal.first_tables import first_tables
from search.terminal.lines import Lines
from search.trial import Proposal, Trial

_TERMINAL_ROWS = 12
PULSE = 1.0  # seconds between two looks at whether something should be said
_STAGES = {
    "calibration": "calibration pass",
    "factors": "computing factors",
    "profile": "measuring one site at a time",
    "tokens": "measuring merged tokens",
    "branches": "measuring without whole branches",
    "widths": "measuring widths on some budgets",
    "dense model": "evaluating the dense model",
    "training": "training the demo model",
    "latency": "measuring latency",
    "learning rate": "probing learning rates",
    "first answer": "measuring budgets as built",
    "forecast": "timing a trial",
    "workers": "starting a worker",
    "loading": "loading the model and the images",
}


class Display(Observer):
    """Shows a search with rich; a context manager, so that the terminal is always given back.

    Attributes:
        bars: of the stages, the search and the trials that run.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.bars = Progress(*columns, console=console)
        self._tasks: dict[str, Any] = {}
        self._summary: RunSummary | None = None
        self._rows: list[Trial] = []
        self._steps, self._began = 0, 0.0
        self._outlook: Outlook | None = None
        self._running: dict[int, Any] = {}  # number of a trial -> its bar
        self._live = Live(self._view(), console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._lines = Lines(self.say)
        self._left_alone = threading.Event()
        self._pulse = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        else:
            self._pulse.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._left_alone.set()
        if self._live is not None:
            self._live.stop()
        else:
            self._pulse.join()

    def _beat(self) -> None:
        """Have something said once a minute, also while the work that goes on tells of nothing."""
        while not self._left_alone.wait(PULSE):
            self._lines.beat()

    def stage(self, what: str, done: int, total: int) -> None:
        description = _STAGES.get(what, what)
        if self._live is None:
            self._lines.stage(description, done, total)
            return
        if what not in self._tasks:
            self._tasks[what] = self.bars.add_task(description, total=total)
        elif self.bars.tasks[self.bars.task_ids.index(self._tasks[what])].finished and done < total:
            self.bars.reset(self._tasks[what])
        self.bars.update(self._tasks[what], completed=done, total=total, visible=done < total)
        self._refresh()

    def answered(self, answer: FirstAnswer) -> None:
        for table in first_tables(answer):
            self.console.print(table)

    def began(self, directory: Path, summary: RunSummary, outlook: Outlook, steps: int) -> None:
        dense = summary.dense
        least, most = summary.reach[MAIN.name]
        costs = ", ".join(spec.format_with_unit(dense.costs[spec.name]) for spec in counted_costs())
        self.console.print(
            f"{summary.model}, space {summary.space}: {costs}, error {dense.error:.2%}; "
            f"can keep {least / most:.1%} to 100% of {MAIN.word}"
        )
        target = "; ".join(budget.text for budget in summary.targets) or "none: the whole front"
        continued = f", continuing after {outlook.finished}" if outlook.finished and outlook.left else ""
        self.console.print(f"target {target}; {max(outlook.trials, outlook.finished)} trials in {directory}{continued}")
        if latency := summary.latency:
            figure = f"{COSTS['latency'].format_with_unit(dense.costs['latency'])} for {latency.text}"
            self.console.print(f"latency of the dense model {figure}; of cut ones by the table, within {latency.error:.1%}")
        self.console.print(forecast_line(outlook))
        self._summary, self._steps, self._outlook, self._began = summary, steps, outlook, time.monotonic()
        self._lines.search(steps, outlook.seconds)
        if self._live is not None:
            self._tasks["trials"] = self.bars.add_task("trials", total=outlook.trials, completed=outlook.finished)

    def started(self, proposal: Proposal) -> None:
        if self._live is None:
            self._lines.started(proposal.number, _name(proposal))
            return
        self._running[proposal.number] = self.bars.add_task(f"trial {proposal.number}", total=self._steps)
        self._refresh()

    def step(self, number: int, step: Step) -> None:
        if self._live is None:
            self._lines.step(number, step.step, step.loss)
        elif number in self._running:
            description = f"trial {number}: loss {step.loss:.3f}"
            self.bars.update(self._running[number], description=description, completed=step.step)
            self._refresh()

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def notice(self, text: str) -> None:
        self.console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def finished(self, trial: Trial, summary: RunSummary, count: int) -> None:
        self._summary = summary
        self._rows = [*self._rows, trial][-_TERMINAL_ROWS:]
        if self._live is None:
            self._lines.finished(trial.proposal.number, f"{_line(trial, summary)}{self._left(count)}")
            return
        if trial.proposal.number in self._running:
            self.bars.remove_task(self._running.pop(trial.proposal.number))
        self.bars.update(self._tasks["trials"], completed=count)
        self._refresh()

    def _left(self, count: int) -> str:
        """Time left, from the trials of this launch."""
        outlook = self._outlook
        if outlook is None or not outlook.finished < count < outlook.trials:
            return ""
        pace = (time.monotonic() - self._began) / (count - outlook.finished)
        return f"; {format_duration(pace * (outlook.trials - count))} left"

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.update(self._view())

    def _view(self) -> RenderableType:
        if self._summary is None:
            return self.bars
        summary = self._summary
        states = ", ".join(f"{count} {state.lower()}" for state, count in summary.states.items()) or "no trial yet"
        status = f"{states}; {len(summary.front)} on the front; hypervolume {summary.hypervolume:.4f}; {_best(summary)}"
        return Group(_trial_table(self._rows, summary) if self._rows else Text(""), Text(status), self.bars)


def forecast_line(outlook: Outlook) -> str:
    """What is ahead, in one line."""
    left, hours = outlook.left, format_duration(3600 * outlook.hours)
    if not left:
        return f"{outlook.finished} trials are finished already, --trials {outlook.trials} asks for no more"
    workers = f"{outlook.workers} worker" + ("s" if outlook.workers > 1 else "")
    trials = f"{left} trials on {workers} take" if left > 1 else f"1 trial on {workers} takes"
    whole = f"{trials} {hours} ({outlook.machine_hours:.2g} worker-hours)"
    source = f" from {outlook.recorded} finished trial{'s' if outlook.recorded > 1 else ''}" if outlook.recorded else ""
    disk = f"weights at most {format_size(outlook.most)}; {_shared(outlook)}"
    return f"forecast{source}: {outlook.seconds:.1f} s a trial; {whole}; {disk}"


def _shared(outlook: Outlook) -> str:
    """What is kept of the batches."""
    if outlook.kept >= outlook.needed:
        return f"batches {format_size(outlook.kept)}"
    need = f"batches need {format_size(outlook.needed)}"
    if not outlook.kept:
        return f"{need}, and every trial makes them anew (see --cache)"
    return f"{need}, of which {format_size(outlook.kept)} are kept (see --cache)"


def _trial_table(rows: list[Trial], summary: RunSummary) -> Table:
    table = Table(caption=f"errors as built are on {summary.images_before}", caption_justify="left")
    for name in ("trial", "label", f"keeps of {MAIN.word}", "error as built", "error fine-tuned", "seconds"):
        table.add_column(name, justify="left" if name == "label" else "right", no_wrap=True)
    for trial in rows:
        number, label, score = str(trial.proposal.number), trial.proposal.label or "", trial.score
        if score is None:
            table.add_row(number, label, "failed", Text(trial.reason or "", style="red", overflow="ellipsis"), "", "")
            continue
        kept = _kept(MAIN, score, summary)
        final = f"stopped at {score.steps}" if score.error is None else f"{score.error:.2%}"
        style = "dim" if score.error is None else None
        table.add_row(number, label, kept, f"{score.error_before:.2%}", final, f"{score.seconds:.1f}", style=style)
    return table


def _name(proposal: Proposal) -> str:
    return f"trial {proposal.number}" + (f" ({proposal.label})" if proposal.label else "")


def _line(trial: Trial, summary: RunSummary) -> str:
    name, score = _name(trial.proposal), trial.score
    if score is None:
        return f"{name}: failed: {trial.reason}"
    shown = (MAIN, *(spec for spec in known_costs(score.costs) if spec.is_measured))
    kept = " and ".join(f"{_kept(spec, score, summary)} of {spec.word}" for spec in shown)
    if score.error is None:
        return f"{name}: keeps {kept}, {trial.reason}; {score.seconds:.1f} s"
    errors = f"error {score.error_before:.2%} as built ({summary.images_before}), {score.error:.2%} fine-tuned"
    return f"{name}: keeps {kept}, {errors}, {score.seconds:.1f} s; {_best(summary)}"


def _kept(spec: CostSpec, score: Score, summary: RunSummary) -> str:
    return format_kept(score.costs[spec.name] / summary.dense.costs[spec.name])


def _best(summary: RunSummary) -> str:
    if not summary.bests:
        return f"{len(summary.front)} on the front"
    points, texts = {point.number: point for point in summary.front}, []
    for budget, best in zip(summary.targets, summary.bests, strict=True):
        under, number = budget.text if len(summary.bests) > 1 else "the target", None if best is None else best.number
        if number is None:
            texts.append(f"none under {under} yet")
        elif number not in points:  # beaten in the objectives, but not within a bound on another cost
            texts.append(f"best under {under}: trial {number}, not on the front")
        else:
            point = points[number]
            error = f"{point.error:.2%}" if point.expected is None else f"{expected_text(point.expected)} expected"
            figures = f"{error} at {summary.kept(point, MAIN.name):.1%} of {MAIN.word}"
            ties = f", {TIED} {len(best.tied)} more" if best is not None and best.tied else ""
            texts.append(f"best under {under}: {figures} (trial {number}{ties})")
    return "; ".join(texts)
