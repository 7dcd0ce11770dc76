"""How long a trial takes: what those of the run took that ran as this launch's will, or a few timed steps."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from objectives.runtime.progress import Progress
from search.config import SearchConfig
from search.layout import ANOTHER_RUN, ENVIRONMENT, RUN_FORMAT
from search.runners.base import Runner
from search.trial import Trial
from spaces.allocation import Allocation
from spaces.errors import RunError
from spaces.files import write_json
from spaces.format_number import FORMAT, check_format
from spaces.schema import OBJECT, read_json

_WEIGHT_BYTES = 4  # of a parameter, as weights are kept
_MACHINES = ("runner", "parallel", "workers_per_gpu", "gpus_per_trial", "threads")
_DATA = ("workers", "eval_batch_size")


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a trial takes.

    Attributes:
        seconds: of one, as most are: the median of those that finished.
        slowest: of the longest one: what says that a trial hangs, or that no time is left for it.
        weights: bytes of its weights.
        recorded: finished trials that this is from; 0 where it was timed.
    """

    seconds: float
    slowest: float
    weights: int
    recorded: int = 0


def expect(runner: Runner, allocation: Allocation, params: float, recorded: Sequence[float], progress: Progress) -> Expected:
    """What trials take, from recorded seconds where there are some; else one is timed.

    Args:
        runner: prepared.
        allocation: to be timed.
        params: parameters of it.
        recorded: `Pace.seconds`.
        progress: told of the timing.
    """
    if recorded:
        weights = int(_WEIGHT_BYTES * params)
        return Expected(seconds=statistics.median(recorded), slowest=max(recorded), weights=weights, recorded=len(recorded))
    progress("forecast", 0, 1)
    timed = runner.forecast(allocation)
    progress("forecast", 1, 1)
    return Expected(seconds=timed.seconds, slowest=timed.seconds, weights=timed.weights)


class Pace:
    """The conditions that trials run under, and since when they are the same.

    Args:
        directory: of the run, whose env.json says what they were in the launch before.
        config: of this launch.
        devices: of its workers that are ready.
    """

    def __init__(self, directory: Path, config: SearchConfig, devices: Sequence[str]) -> None:
        self._path = directory / ENVIRONMENT
        self._conditions = {
            "devices": sorted(set(devices)),
            **{name: getattr(config.machines, name) for name in _MACHINES},
            **{name: getattr(config.data, name) for name in _DATA},
        }
        before = _read(self._path)
        same = before.get("conditions") == self._conditions and isinstance(before.get("since"), str)
        self._since = before["since"] if same else datetime.now(UTC).isoformat(timespec="seconds")
        self._known = same

    def seconds(self, trials: Sequence[Trial]) -> list[float]:
        """Of every trial that finished under these conditions; one that was stopped or that a recipe made is like no other."""
        found = [trial for trial in trials if trial.state == "COMPLETE" and trial.ended >= self._since and self._known]
        return [trial.score.seconds for trial in found if trial.score is not None and trial.proposal.recipe is None]

    def write(self, environment: dict[str, Any]) -> None:
        """Write env.json: what the launch runs on, and these conditions."""
        write_json(self._path, {FORMAT: RUN_FORMAT, **environment, "conditions": self._conditions, "since": self._since})


def _read(path: Path) -> dict[str, Any]:
    """What env.json holds; empty where it is missing or damaged: it is written anew.

    Raises:
        RunError: it has another format.
    """
    try:
        content: dict[str, Any] = read_json(path, OBJECT)
    except (OSError, ValueError):
        return {}
    check_format(path, content, RUN_FORMAT, RunError, ANOTHER_RUN)
    return content
