"""Runs parts within a budget of time: each unit in a process of its own, so that what kills one leaves the others."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpu.parts import PARTS, Part
from gpu.rows import DONE, END, FAILED, SKIPPED, STOPPED, Row, append, of, read, state
from gpu.setting import Setting

HERE = Path(__file__).parents[1]
_LAST = 20.0  # seconds that are kept for ending processes and for the page


@dataclass
class Running:
    """A unit whose process runs."""

    part: str
    unit: str
    process: subprocess.Popen[bytes]
    began: float
    end: float  # by `time.monotonic`


class Driver:
    """Runs parts within a budget of time.

    Args:
        setting: where and at which size.
        seconds: for all.
        write_page: called after every part.
        clock: in seconds.
    """

    def __init__(self, setting: Setting, seconds: float, write_page: Callable[[], object]) -> None:
        self.setting, self._write_page = setting, write_page
        self._end = time.monotonic() + seconds - (0 if setting.tiny else _LAST)
        self._running: list[Running] = []

    def run(self, names: Iterable[str]) -> None:
        """Run parts one after the other; whatever ends this, no process is left behind."""
        try:
            for name in names:
                self._part(name, PARTS[name])
                self._write_page()
        finally:
            for running in self._running:
                self._kill(running)
                self._ended(running.part, running.unit, STOPPED, "the call was ended", time.monotonic() - running.began)
            self._write_page()

    def _part(self, name: str, part: Part) -> None:
        rows = of(read(self.setting.rows), self.setting.device, self.setting.tiny)
        waiting = [unit for unit in part.units_of(self.setting) if state(rows, name, unit) != DONE]
        if not waiting:
            self._say(f"{name}: done before")
        while waiting or self._running:
            while waiting and len(self._running) < part.at_once:
                unit = waiting.pop(0)
                reason = part.lacks(self.setting) or self._lack_of_time(part)
                if reason:
                    self._ended(name, unit, SKIPPED, reason, 0.0)
                else:
                    self._running.append(self._start(name, unit, part))
            time.sleep(0.1)
            for running in list(self._running):
                self._look(running)

    def _lack_of_time(self, part: Part) -> str | None:
        left, needed = self._end - time.monotonic(), 0 if self.setting.tiny else part.seconds
        return f"{max(0, left):.0f} s were left, about {needed} are needed" if left < needed else None

    def _start(self, name: str, unit: str, part: Part) -> Running:
        log = self.setting.folder / "logs" / f"{name}-{re.sub(r'[^0-9a-z]+', '-', unit.lower())}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self._say(f"{name}, {unit} ...")
        paths = (str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", ""))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "gpu.unit", name, unit, self.setting.dump()]
        with log.open("ab") as file:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        now = time.monotonic()
        return Running(name, unit, process, now, min(now + part.limit, self._end))

    def _look(self, running: Running) -> None:
        """Take note of a process that has ended, and end one whose time is up."""
        code, now = running.process.poll(), time.monotonic()
        if code is None and now < running.end:
            return
        self._running.remove(running)
        name, seconds = running.part, now - running.began
        self._kill(running)
        if code is None:
            self._ended(name, running.unit, STOPPED, f"after {seconds:.0f} s: its time was up", seconds)
        elif code:
            cause = signal.Signals(-code).name if code < 0 else f"status {code}"
            self._ended(name, running.unit, FAILED, f"its process ended with {cause}", seconds)
        else:
            rows = of(read(self.setting.rows), self.setting.device, self.setting.tiny)
            end = next(row for row in reversed(rows) if (row.part, row.unit, row.what) == (name, running.unit, END))
            self._say(f"{name}, {running.unit}: {end.figures['state']} in {seconds:.0f} s {end.figures['reason']}")

    def _ended(self, name: str, unit: str, state: str, reason: str, seconds: float) -> None:
        figures = {"state": state, "reason": reason, "seconds": round(seconds, 1)}
        device, tiny = self.setting.device, self.setting.tiny
        append(self.setting.rows, Row(part=name, unit=unit, what=END, figures=figures, device=device, tiny=tiny))
        self._say(f"{name}, {unit}: {state}: {reason}")

    @staticmethod
    def _kill(running: Running) -> None:
        """The process and all that it started, which share its session."""
        with suppress(ProcessLookupError):
            os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()

    @staticmethod
    def _say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
