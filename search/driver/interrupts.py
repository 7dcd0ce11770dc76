"""Ctrl-C: once to finish what runs, twice to stop at once. SIGTERM, which schedulers send before they kill, stops at once."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """A context in which the first Ctrl-C is only noted.

    Outside of the main thread, where Python allows no handlers, nothing is changed.

    Args:
        noted: called at the first Ctrl-C, in a thread of its own.

    Attributes:
        asked: whether there was one.
    """

    def __init__(self, noted: Callable[[], None]) -> None:
        self.asked = False
        self._noted = noted
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = {
                signal.SIGINT: signal.signal(signal.SIGINT, self._interrupt),
                signal.SIGTERM: signal.signal(signal.SIGTERM, self._terminate),
            }
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        # In a thread of its own: this one may be in the midst of printing.
        threading.Thread(target=self._noted, daemon=True).start()

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt
