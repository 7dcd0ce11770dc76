"""What it costs to keep a trial in a journal file or a database, and to read all of them again.

    PYTHONPATH=tests python benchmarks/storages.py --storage journal sqlite postgresql mariadb --trials 1000

The trials are those of a search with the additive sampler and its screening on the 48-site surrogate: 49 parameters each, and
the candidates that were screened with it. They are recorded again and again under new numbers, as `Study.tell` records them.
Servers are started here. CPU is this process's; a server on another machine adds its distance to every statement.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
import torch
from local_servers import mariadb, postgresql
from scaling import OBJECTIVES, study_of
from simulated import Sleep
from surrogate import Surrogate

from search.study.journal import Journal
from search.study.study import Study
from search.trial import Outcome, Proposal, Screened, Screening

SERVERS = {"postgresql": postgresql, "mariadb": mariadb}
SEARCHED = 48  # trials of the search whose trials are recorded


class Meter:
    """Wall and CPU milliseconds, and statements sent to a database, of calls.

    Attributes:
        rows: of each call: wall, CPU, statements.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[float, float, int]] = []
        self._statements = 0
        sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", self._count)

    def _count(self, *given: Any) -> None:
        self._statements += 1

    def call(self, function: Callable[..., Any], *given: Any) -> Any:
        self._statements = 0
        wall, cpu = time.perf_counter(), time.process_time()
        done = function(*given)
        self.rows.append((1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu), self._statements))
        return done

    def told(self) -> str:
        """Columns of a table: medians of wall and CPU, and the last number of statements; none is kept."""
        wall, cpu = (statistics.median(row[index] for row in self.rows) for index in (0, 1))
        *_, statements = self.rows[-1]
        self.rows.clear()
        return f"{wall:.1f} | {cpu:.1f} | {statements}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", nargs="+", default=["journal", "sqlite", *SERVERS], help="those names, or URLs")
    parser.add_argument("--trials", type=int, default=1000)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    meter = Meter()
    print("| storage | what | wall, ms | CPU, ms | statements |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        study = searched(Path(folder) / "search")
        for index, name in enumerate(arguments.storage):
            run = Path(folder) / f"benchmark-{os.getpid()}-{index}"  # names of studies in a database that may have others
            run.mkdir()
            with storage(name, Path(folder)) as url:
                measure(meter, name, partial(Journal, run, len(OBJECTIVES), url, "benchmark"), study, arguments.trials)
    print(f"load average at the end: {os.getloadavg()[0]:.1f}")


def searched(folder: Path) -> Study:
    """A search of which every trial has parameters, and all but the first ones candidates that were screened with it."""
    surrogate = Surrogate(0, noise=0.01)
    study, sleep = study_of(folder, surrogate, "additive"), Sleep(1.0, 0.1, surrogate)
    while len(study.trials) < SEARCHED:
        job = study.ask()
        while isinstance(job, Screening):
            screened = sleep.result(job)
            assert isinstance(screened, Screened)
            job = study.choose(job.number, screened.divergences)
        assert isinstance(job, Proposal)
        outcome = sleep.result(job)
        assert isinstance(outcome, Outcome)
        study.tell(outcome)
    return study


def measure(meter: Meter, name: str, opened: Callable[[], Journal], study: Study, count: int) -> None:
    """Print the rows of one storage."""
    journal = meter.call(opened)
    print(f"| {name} | opened, nothing there | {meter.told()} |", flush=True)
    noted = [frozen.system_attrs for frozen in study.journal.frozen()]
    for number in range(count):
        trial, system = study.trials[number % SEARCHED], noted[number % SEARCHED]
        trial = replace(trial, proposal=replace(trial.proposal, number=number))
        assert trial.score is not None and trial.score.error is not None
        values = [trial.score.error, trial.score.costs["macs"]]
        meter.call(journal.append, trial, values, study.parametrisation.distributions, system)
    print(f"| {name} | a trial, median of {count} | {meter.told()} |", flush=True)
    journal.close()
    journal = meter.call(opened)
    print(f"| {name} | opened with {count} trials | {meter.told()} |", flush=True)
    assert len(journal.frozen()) == count
    journal.close()


@contextmanager
def storage(name: str, folder: Path) -> Iterator[str | None]:
    """The URL of a storage; None for a journal file."""
    if name in SERVERS:
        with SERVERS[name]() as server:
            yield server.url
    else:
        yield {"journal": None, "sqlite": f"sqlite:///{folder / 'studies.db'}"}.get(name, name)


if __name__ == "__main__":
    main()
