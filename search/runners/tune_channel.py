"""Two threads that hand each other jobs and events: the search's own, and the one that Ray Tune runs in."""

import threading
from collections import deque
from typing import Any

from search.runners.worker import AtRung


class Exchange:
    """What the caller's thread and Tune's hand to each other.

    Tune's thread waits while the caller is busy: of several workers that got idle meanwhile, Tune would keep but one warm.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._configs: deque[dict[str, Any]] = deque()
        self._told: deque[tuple[int, Any]] = deque()
        self._answers: deque[str | None] = deque()
        self._waiting = False
        self.closed = self.aborted = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune pickles all that it is given, to be able to restore it. Nothing of it is restored."""
        return Exchange, ()

    def __deepcopy__(self, memo: object) -> "Exchange":
        return self

    # in the caller's thread

    def put(self, config: dict[str, Any]) -> None:
        """Have Tune run a job."""
        with self._changed:
            self._configs.append(config)
            self._changed.notify_all()

    def take(self, timeout: float) -> tuple[int, Any] | None:
        """What Tune told next: number of a trial, and event."""
        with self._changed:
            self._waiting = True
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: self._told, timeout)
            finally:
                self._waiting = False
            return self._told.popleft() if self._told else None

    def answer(self, reason: str | None) -> None:
        """Answer what Tune asks: why a trial should be stopped at its rung, None where it goes on."""
        with self._changed:
            self._answers.append(reason)
            self._changed.notify_all()

    def close(self, abort: bool) -> None:
        """No job follows; with `abort`, those that run are ended too."""
        with self._changed:
            self.closed, self.aborted = True, abort
            self._changed.notify_all()

    # in Tune's thread

    def next(self) -> dict[str, Any] | None:
        """The next job's config, None while the caller has none."""
        with self._changed:
            self._changed.wait_for(lambda: self._configs or self.closed or (self._waiting and not self._told))
            return self._configs.popleft() if self._configs else None

    def tell(self, number: int, event: Any) -> None:
        """Hand over what happened to a trial."""
        with self._changed:
            self._told.append((number, event))
            self._changed.notify_all()

    def ask(self, number: int, event: AtRung) -> str | None:
        """Hand over that a trial is at a rung, and wait for the answer."""
        self.tell(number, event)
        with self._changed:
            self._changed.wait_for(lambda: self._answers or self.closed)
            return self._answers.popleft() if self._answers else None
