"""Where the seconds of a process go: every second belongs to one stage, the innermost that is open."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

T = TypeVar("T")
IMPORTS, REST = "imports", "the rest"
BEGAN = time.perf_counter()  # import this module before all slow ones


def cpu_seconds() -> float:
    """CPU seconds of this process since its start."""
    return time.process_time()


def gpu_seconds() -> float:
    """Wall seconds since the import of this module, with the work on the GPU done: CPU seconds say nothing of it."""
    import torch

    torch.cuda.synchronize()
    return time.perf_counter() - BEGAN


class Stages:
    """Seconds by stage. What passed before the first stage is `IMPORTS`, what is in no stage is `REST`.

    Args:
        clock: seconds since the process began.

    Attributes:
        seconds: stage -> seconds so far.
    """

    def __init__(self, clock: Callable[[], float] = cpu_seconds) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._clock, self._open, self._last = clock, [IMPORTS], 0.0
        self._turn()
        self._open = [REST]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What is done within belongs to this stage, except for stages within it."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def each(self, name: str, values: Iterable[T]) -> Iterator[T]:
        """These values; the making of each belongs to the stage, what is done with it does not."""
        with self.stage(name):
            iterator = iter(values)
        while True:
            with self.stage(name):
                try:
                    value = next(iterator)
                except StopIteration:
                    return
            yield value

    def call(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose calls belong to the stage."""

        @wraps(function)
        def called(*given: Any, **options: Any) -> Any:
            with self.stage(name):
                return function(*given, **options)

        return called

    def iterator(self, name: str, function: Callable[..., Iterable[Any]]) -> Callable[..., Iterator[Any]]:
        """The same function, whose result belongs to the stage while it makes a value."""

        @wraps(function)
        def called(*given: Any, **options: Any) -> Iterator[Any]:
            with self.stage(name):
                values = function(*given, **options)
            return self.each(name, values)

        return called

    def read(self) -> dict[str, float]:
        """Seconds by stage up to now; they add up to the clock's."""
        self._turn()
        return dict(self.seconds)

    def _turn(self) -> None:
        now = self._clock()
        self.seconds[self._open[-1]] += now - self._last
        self._last = now
