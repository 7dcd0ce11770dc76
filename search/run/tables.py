"""The run's own tables: trials.csv, pareto.csv, pareto.json and evidence.safetensors, written and read together."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from search.evidence.file import write_evidence
from search.evidence.posterior import NO_EVIDENCE, Evidence
from search.layout import SUMMARY, TRIALS
from search.run.finished_trial import FinishedTrial
from search.run.places import no_run
from search.run.summary import RunSummary
from search.run.summary_file import read_summary, write_summary
from search.run.trial_table import EXPECTED, check_trials, csv_lines, trial_table
from spaces.errors import RunError, first_line
from spaces.files import write_text


class RunTables:
    """Writes the tables of a run, again and again while it grows; each trial is made text once, but for what is expected of it.

    Args:
        directory: of the run.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._head = ""
        self._lines: dict[int, str] = {}  # number -> line of trials.csv

    def write(self, trials: Sequence[FinishedTrial], summary: RunSummary, evidence: Evidence = NO_EVIDENCE) -> None:
        """Write all of them, each atomically; pareto.json last.

        Args:
            trials: of the run, in the order of the rows; one of a number that was written before is as it was then, but for
                the error that is expected of it.
            summary: of the run; its spaces and costs are those of the other times.
            evidence: of the run.
        """
        new = [trial for trial in trials if trial.number not in self._lines]
        if new or not self._head:
            table = trial_table(new, summary.costs, summary.sites).drop(columns=list(EXPECTED))
            self._head, *lines = (line.removesuffix("\n") for line in csv_lines(table))
            self._lines |= {trial.number: line for trial, line in zip(new, lines, strict=True)}
        front = {point.number for point in summary.front}
        for name, shown in ((TRIALS, trials), ("pareto.csv", [trial for trial in trials if trial.number in front])):
            rows = (f"{self._lines[trial.number]},{_expected(trial)}\n" for trial in shown)
            write_text(self._directory / name, ",".join((self._head, *EXPECTED)) + "\n" + "".join(rows))
        write_evidence(self._directory, evidence)
        write_summary(self._directory, summary)


def _expected(trial: FinishedTrial) -> str:
    found = trial.expected
    return ",," if found is None else ",".join(repr(end) for end in (found.mean, found.low, found.high))


def read_tables(directory: Path) -> tuple[pd.DataFrame, RunSummary]:
    """The trials and the summary of a run, also while a search writes it.

    Raises:
        RunError: there is no run, nothing was written yet, or what was is damaged.
    """
    path = directory / SUMMARY
    try:
        summary = read_summary(directory)
        path = directory / TRIALS
        trials = pd.read_csv(path, low_memory=False)
        check_trials(trials, summary)
    except FileNotFoundError as error:
        raise no_run(directory, path.name) from error
    except (ValueError, OverflowError) as error:  # pandas' are ValueErrors too
        raise RunError(
            f"the tables of {directory} cannot be read ({path.name}: {first_line(error)}): launch the run again to write them "
            "anew"
        ) from error
    return trials, summary
