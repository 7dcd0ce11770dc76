"""Searches with several workers on one GPU: candidates an hour while all of them work."""

import shutil
import time
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from gpu.models import fashion
from gpu.rows import Figures
from gpu.setting import Setting
from search import launch
from search.driver.observer import Observer
from search.trial import Trial

_TRIALS, _STEPS = 17, 60  # the first trial is the dense model


class Ends(Observer):
    """When trials ended, in seconds since any moment."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def ended(self, trial: Trial) -> None:
        self.seconds.append(time.perf_counter())


def measure(unit: str, setting: Setting, known: Mapping[str, Figures]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A search with so many workers, through Ray.

    The rate is of the time between the ends of the first and the last trials that all workers had: with w workers, from the
    w-th end to the last.
    """
    workers, trials = int(unit), 5 if setting.tiny else _TRIALS
    directory = setting.folder / f"workers-{workers}{'-tiny' if setting.tiny else ''}"
    shutil.rmtree(directory, ignore_errors=True)
    machines = {"workers_per_gpu": workers} if setting.on_gpu else {"parallel": workers}
    config = fashion(
        setting, runner="ray", **machines, threads=1, trials=trials, steps=2 if setting.tiny else _STEPS, baselines=(),
        target=("flops=50%",), output=str(directory),
    )  # fmt: skip
    start, ends = time.perf_counter(), Ends()
    run = launch(config, ends)
    count, steady = len(ends.seconds), ends.seconds[-1] - ends.seconds[workers - 1]
    yield "search", {
        "trials": count, "seconds in all": time.perf_counter() - start, "candidates an hour": 3600 * (count - workers) / steady,
        "median seconds of a trial": median(trial.seconds or 0.0 for trial in run.complete),
    }  # fmt: skip
