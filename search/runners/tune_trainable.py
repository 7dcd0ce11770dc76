"""What runs in a process of Ray Tune: a warm worker, whose next event is what one step of a trial gives."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import tune

from objectives.forecast import Forecast
from objectives.objective import Objective
from objectives.runtime.progress import Step
from objectives.score import Score
from search.runners.job import Need
from search.runners.worker import AtRung, Event, Worker
from search.trial import Outcome, Proposal
from spaces.allocation import Allocation
from spaces.errors import CompressionError

EVENT = "event"
_COLUMNS = ("error", "error_before", "kl", "kl_before", "macs", "params", "latency", "steps", "seconds")


class Trainable(tune.Trainable):
    """Trials of Tune, one after another, on one `Worker`.

    A config has a `number` and at most one of: a `proposal` with its `folder`, or an `allocation` to be forecast. Without
    either, the worker is only prepared. A step gives the next event of the worker; what it found at a rung, `answer` answers
    before the next step.
    """

    def setup(  # type: ignore[override]  # Tune's `with_parameters` gives it the rest
        self, config: dict[str, Any], objective: Objective, directory: str, threads: int, needs: Sequence[Need]
    ) -> None:
        os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths mean something in the search's directory alone
        self._worker, self._needs, self._prepared = Worker(objective, directory, threads), needs, False
        self._events = self._run(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial: all that is loaded stays."""
        self._events = self._run(new_config)
        return True

    def step(self) -> dict[str, Any]:
        event: Event | Forecast | CompressionError | None
        try:
            event = next(self._events, None)
        except CompressionError as error:  # the search's end, not this trial's
            event = error
        done = event is None or isinstance(event, Outcome | Forecast | CompressionError)
        return {EVENT: event, "done": done, **_row(event)}

    def answer(self, reason: str | None) -> None:
        """Let the trial that waits at a rung go on, or stop it for a reason."""
        self._worker.answer(reason)

    def _run(self, config: Mapping[str, Any]) -> Iterator[Any]:
        if not self._prepared:
            yield from self._worker.prepare(self._needs)
            self._prepared = True
        if "allocation" in config:
            yield self._worker.forecast(Allocation(config["allocation"]))
        elif "proposal" in config:
            yield from self._worker.run(Proposal.from_dict(config["proposal"]), Path(config["folder"]))


def _row(event: object) -> dict[str, Any]:
    """What Tune's loggers write of an event: always the same columns, NaN where it has none."""
    row: dict[str, Any] = dict.fromkeys(("step", "loss", "lr", "error_at_rung", *_COLUMNS), math.nan)
    if isinstance(event, Step):
        return row | asdict(event)
    if isinstance(event, AtRung):
        return row | {"step": event.step, "error_at_rung": event.error}
    if isinstance(event, Outcome) and event.score is not None:
        return row | _figures(event.score)
    return row


def _figures(score: Score) -> dict[str, float]:
    """Of a trial that ended; NaN where it was stopped before they were measured."""
    return {name: math.nan if value is None else value for name in _COLUMNS for value in [getattr(score, name)]}
