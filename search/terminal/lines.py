"""Plain lines of what takes long, for output that is no terminal: when it begins and ends, and once a minute in between."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from objectives.units import format_duration

EVERY = 60.0  # seconds after which something is said again
_LONG = 5.0  # seconds of a stage whose end is told: that of a shorter one is the beginning of the next
_NAMED = 4  # of the trials that run


@dataclass
class _Stage:
    """A preparation that goes on.

    Attributes:
        name: in words.
        began: when its first report came, by the clock.
        first, done, total: how much of it was done then, and is now, of how much.
    """

    name: str
    began: float
    first: int
    done: int
    total: int

    def line(self, now: float) -> str:
        """How far it is; how long it will take, as long as its pace lasts."""
        taken, spent = self.done - self.first, now - self.began
        if self.total <= 1:
            return f"{self.name}: for {format_duration(spent)}"
        if taken <= 0:
            return f"{self.name}: {self.done} of {self.total}, begun {format_duration(spent)} ago"
        return f"{self.name}: {self.done} of {self.total}, {format_duration(spent / taken * (self.total - self.done))} left"


@dataclass
class _Trial:
    """A trial that runs: when it began, by the clock, the optimiser steps that it has taken, and its latest loss."""

    name: str
    began: float
    step: int = 0
    loss: float = 0.0

    def text(self, now: float, steps: int) -> str:
        where = f"step {self.step} of {steps}, loss {self.loss:.3f}" if self.step else "no step taken yet"
        if 0 < steps <= self.step:
            where = f"all {steps} steps taken, being measured"
        return f"{self.name}: {where}, begun {format_duration(now - self.began)} ago"


class Lines:
    """Says what goes on. `beat` is to be called about once a second, from any thread: work tells of itself at its own pace.

    Args:
        show: prints one line.
        clock: in seconds.
    """

    def __init__(self, show: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._show, self._clock, self._lock = show, clock, threading.RLock()
        self._stages: list[_Stage] = []  # that go on, each within the one before
        self._trials: dict[int, _Trial] = {}
        self._steps, self._long = 0, False
        self._last, self._said = "", clock()  # what was said of the work last, and when

    def stage(self, name: str, done: int, total: int) -> None:
        """A stage began, went on, or ended."""
        with self._lock:
            now = self._clock()
            while name in (stage.name for stage in self._stages[:-1]):
                self._stages.pop()
            if not self._stages or self._stages[-1].name != name:
                self._stages.append(_Stage(name, now, done, done, total))
                self._say(f"{name}: begins" if done < total else f"{name}: done")
            stage = self._stages[-1]
            stage.done, stage.total = done, total
            if done >= total:
                self._stages.pop()
                if now - stage.began >= _LONG:
                    self._say(f"{name}: done in {format_duration(now - stage.began)}")
        self.beat()

    def search(self, steps: int, seconds: float) -> None:
        """Trials follow, of so many optimiser steps, which are expected to take so many seconds each."""
        with self._lock:
            self._steps, self._long = steps, seconds >= EVERY

    def started(self, number: int, name: str) -> None:
        """A trial began; those that end within a minute are not told of before."""
        with self._lock:
            self._stages.clear()
            self._trials[number] = _Trial(name, self._clock())
            if self._long:
                self._say(f"{name}: begins")

    def step(self, number: int, step: int, loss: float) -> None:
        """A trial took an optimiser step."""
        with self._lock:
            if number in self._trials:
                self._trials[number].step, self._trials[number].loss = step, loss
        self.beat()

    def finished(self, number: int, line: str) -> None:
        """A trial ended."""
        with self._lock:
            self._trials.pop(number, None)
            self._say(line)

    def beat(self) -> None:
        """Say what goes on, where nothing was said of it for a minute."""
        with self._lock:
            now = self._clock()
            if now - self._said >= EVERY:
                self._say(self._work(now), again=True)

    def _work(self, now: float) -> str:
        if self._stages:
            return self._stages[-1].line(now)
        if self._trials:
            running = [trial.text(now, self._steps) for trial in self._trials.values()]
            more = [f"and {len(running) - _NAMED} more"] if len(running) > _NAMED else []
            return "; ".join([*running[:_NAMED], *more])
        return f"still at work (the last that was said: {self._last})" if self._last else "at work"

    def _say(self, line: str, again: bool = False) -> None:
        self._said = self._clock()
        if not again:
            self._last = line
        self._show(line)
