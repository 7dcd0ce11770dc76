"""The run's own tables: trials.csv, pareto.csv and pareto.json, written and read together."""

from pathlib import Path

import pandas as pd

from search.layout import SUMMARY, TRIALS
from search.run.places import no_run
from search.run.summary import RunSummary
from search.run.summary_file import read_summary, write_summary
from search.run.trial_table import check_trials
from spaces.errors import RunError, first_line
from spaces.files import replacing


def write_tables(directory: Path, trials: pd.DataFrame, summary: RunSummary) -> None:
    """Write trials.csv, pareto.csv and pareto.json, each atomically."""
    on_front = trials["number"].isin([point.number for point in summary.front])
    for name, table in ((TRIALS, trials), ("pareto.csv", trials[on_front])):
        with replacing(directory / name) as partial:
            table.to_csv(partial, index=False)
    write_summary(directory, summary)


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
