"""The launch of a search: checks, the run's directory and its lock, then one session, then the audit."""

import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from objectives.training.run_batches import remove_batches
from search.config import SearchConfig
from search.driver.observer import Observer
from search.driver.session import Session
from search.fidelity.audit import audit
from search.layout import JOURNAL
from search.run.continuation import check_same_latencies, check_same_run
from search.run.directory import default_output, lock_run, make_directory, remove_if_empty
from search.run.losses import check_nothing_lost
from search.run.model import model_of_run
from search.run.places import check_no_export
from search.run.run import Run
from search.study.replay import journal_numbers
from spaces.files import remove_partials
from spaces.scratch import remove_abandoned


def launch(config: SearchConfig, observer: Observer | None = None) -> Run:
    """Start the search in `config.study.output`, or continue the one that is there.

    Args:
        config: of the search.
        observer: told of all that happens; by default nobody is.

    Raises:
        CompressionError: anything that the user can put right, before a trial is paid for.
        RunError: every trial failed, three in a row failed for the same cause, or too few finished for the audit.
        KeyboardInterrupt: after Ctrl-C; what finished is kept.
    """
    observer = observer or Observer()
    began = time.monotonic()
    config = model_of_run(config)
    directory = Path(config.study.output or default_output(config))
    check_no_export(directory)
    check_same_run(directory, config)
    check_same_latencies(directory, config)
    if config.machines.threads is not None:
        torch.set_num_threads(config.machines.threads)
    config = replace(config, study=replace(config.study, output=str(directory)))
    make_directory(directory)
    with lock_run(directory):
        done = _search(config, directory, observer, began)
    run = Run(directory)
    if config.study.audit and done:
        audit(run, config.study.audit, progress=observer.stage)
    if done:
        remove_batches(directory)
    return run


def _search(config: SearchConfig, directory: Path, observer: Observer, began: float) -> bool:
    """What `launch` does while no other process may; whether the search is done."""
    remove_partials(directory)
    remove_abandoned()
    try:
        if config.study.storage is None:  # before anything is computed
            path = directory / JOURNAL
            check_nothing_lost(directory, journal_numbers(path), str(path), "restore it from a backup")
        session = Session(config, directory, observer, began)
    except BaseException:
        remove_if_empty(directory)
        raise
    with closing(session):
        return session.run()
