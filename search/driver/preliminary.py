"""Jobs before the first trial: run on the runner's workers, all of them, and their results by number."""

from collections.abc import Callable, Iterable
from pathlib import Path

from search.driver.failure_policy import Faults
from search.runners.base import Runner
from search.trial import Job, Outcome, Probed, Screened


def run_before(
    runner: Runner,
    jobs: Iterable[Job],
    folder: Path,
    ended: Callable[[Screened | Probed], None] = lambda result: None,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[int, Screened | Probed]:
    """Run screenings and probes; no trial may be running.

    Args:
        runner: prepared.
        jobs: of numbers below 0, each another.
        folder: what a lost worker leaves on stderr goes there.
        ended: told of every result.
        stopping: whether no further job should be begun.

    Returns:
        Number of a job -> its result; those whose workers were lost every time, or that were not begun, are missing.

    Raises:
        CompressionError: what concerns every trial.
    """
    waiting, running, faults = list(jobs), dict[int, Job](), Faults()
    results: dict[int, Screened | Probed] = {}
    while running or (waiting and not stopping()):
        while waiting and runner.free > 0 and not stopping():
            job = waiting.pop(0)
            running[job.number] = job
            runner.submit(job, folder)
        found = runner.wait()
        if found is None:
            continue
        job = running.pop(found.number)
        if not isinstance(found, Outcome):
            results[found.number] = found
            ended(found)
        elif faults.again(found):
            waiting.append(job)
    return results
