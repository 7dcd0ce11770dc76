"""Workers that die while they start. They import nothing that takes seconds: each of them is a process of its own."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Deaths:
    """Stands for an objective: how many workers die, counted by a file.

    Attributes:
        deaths: workers, one after another, that die.
        timings: of those that do not, how many die when a trial is forecast.
    """

    file: Path
    deaths: int
    timings: int = 0
    device: str = "cpu"

    @property
    def starts(self) -> int:
        return len(self.file.read_text()) if self.file.exists() else 0


class Mortal:
    """A worker of `search.runners.ray_actors`, as far as it is prepared and asked for a forecast."""

    def __init__(self, deaths: Deaths, *_: object) -> None:
        self._deaths = deaths

    def prepare(self, needs: object) -> Iterator[Any]:
        with self._deaths.file.open("a") as file:
            file.write(".")
        if self._deaths.starts <= self._deaths.deaths:
            os._exit(1)
        from search.runners.worker import Ready

        yield Ready(host="here", pid=os.getpid(), device="cpu", stderr="")

    def forecast(self, allocation: object) -> int:
        if self._deaths.starts <= self._deaths.deaths + self._deaths.timings:
            os._exit(1)
        return os.getpid()
