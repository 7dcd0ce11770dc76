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
from search.trial import Outcome, Proposal, Screened, Screening, Trial

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
        most = self.rows.pop()[2]
        self.rows.clear()
        return f"{wall:.1f} | {cpu:.1f} | {most}"


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
        study, system = searched(Path(folder) / "search")
        for name in arguments.storage:
            with storage(name, Path(folder)) as url:
                measure(
                    meter, name, Path(folder) / f"{name.partition(':')[0]}-{os.getpid()}", url, study, system, arguments.trials
                )
    print(f"load average at the end: {os.getloadavg()[0]:.1f}")


def searched(folder: Path) -> tuple[Study, list[dict[str, Any]]]:
    """A search of which every trial has parameters and screened candidates but the first ones; and what samplers noted."""
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
    return study, [frozen.system_attrs for frozen in study.journal.frozen()]


def measure(
    meter: Meter, name: str, directory: Path, url: str | None, study: Study, system: list[dict[str, Any]], count: int
) -> None:
    """Print the rows of one storage."""
    directory.mkdir()
    open_journal = lambda: Journal(directory, len(OBJECTIVES), url, "benchmark")  # noqa: E731
    journal = meter.call(open_journal)
    print(f"| {name} | open, nothing there | {meter.told()} |")
    for number in range(count):
        trial, noted = study.trials[number % SEARCHED], system[number % SEARCHED]
        meter.call(append, journal, study, replace(trial, proposal=replace(trial.proposal, number=number)), noted)
    print(f"| {name} | a trial | {meter.told()} |")
    journal.close()
    journal = meter.call(open_journal)
    print(f"| {name} | open with {count} trials | {meter.told()} |")
    assert len(journal.frozen()) == count
    journal.close()


def append(journal: Journal, study: Study, trial: Trial, noted: dict[str, Any]) -> None:
    assert trial.score is not None and trial.score.error is not None
    values = [trial.score.error, trial.score.costs["macs"]]
    journal.append(trial, values, study.parametrisation.distributions, noted)


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
