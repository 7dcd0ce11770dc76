"""How long a trial takes: what those of the run took that ran as this launch's will, or a few timed steps."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from objectives.forecast import Forecast
from search.config import SearchConfig
from search.layout import ANOTHER_RUN, ENVIRONMENT, RUN_FORMAT
from search.trial import Trial
from spaces.errors import RunError
from spaces.files import write_json
from spaces.format_number import FORMAT, check_format
from spaces.schema import OBJECT, POSITIVE, SIZE, SchemaError, check, read_json

_WEIGHT_BYTES = 4  # of a parameter, as weights are kept
_MACHINES = ("runner", "parallel", "workers_per_gpu", "gpus_per_trial", "threads")
_DATA = ("workers", "eval_batch_size")
_TIMED = {"seconds": POSITIVE, "weights": SIZE, "params": SIZE}


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


NOTHING = Expected(seconds=0.0, slowest=0.0, weights=0)  # where no trial is to be run


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
        self._timed = _timed(before.get("timed")) if same else None

    def seconds(self, trials: Sequence[Trial]) -> list[float]:
        """Of every trial that finished under these conditions; one that was stopped or that a recipe made is like no other."""
        found = [trial for trial in trials if trial.state == "COMPLETE" and trial.ended >= self._since and self._known]
        return [trial.score.seconds for trial in found if trial.score is not None and trial.proposal.recipe is None]

    def expect(self, trials: Sequence[Trial], wanted: int, params: int, time: Callable[[], Forecast]) -> Expected:
        """What a trial of this launch takes: what finished ones took, or what one was timed to take, now or in a launch before.

        Args:
            trials: of the run that have ended.
            wanted: trials in the run when it is done; nothing is timed where there are as many.
            params: parameters of the allocation that is timed.
            time: times a few steps of it.
        """
        if recorded := self.seconds(trials):
            weights, seconds = _WEIGHT_BYTES * params, statistics.median(recorded)
            return Expected(seconds=seconds, slowest=max(recorded), weights=weights, recorded=len(recorded))
        if len(trials) >= wanted:
            return NOTHING
        if self._timed is None or self._timed["params"] != params:
            timed = time()
            self._timed = {"seconds": timed.seconds, "weights": timed.weights, "params": params}
        seconds = self._timed["seconds"]
        return Expected(seconds=seconds, slowest=seconds, weights=self._timed["weights"])

    def write(self, environment: dict[str, Any]) -> None:
        """Write env.json: what the launch runs on, these conditions, and what a trial was timed to take under them."""
        timed = {} if self._timed is None else {"timed": self._timed}
        conditions = {"conditions": self._conditions, "since": self._since}
        write_json(self._path, {FORMAT: RUN_FORMAT, **environment, **conditions, **timed})


def _timed(found: Any) -> dict[str, Any] | None:
    """What a trial was timed to take in a launch before; None where env.json does not say it as it should."""
    try:
        check(found, _TIMED)
    except SchemaError:
        return None
    return dict(found)


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
