"""A real search whose processes are killed at random moments, and what must hold of its run afterwards."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
import pandas as pd
import psutil
import torch
from local_patience import PATIENCE, poll
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from safetensors.torch import load_file

from search.layout import CHECKPOINT, WEIGHTS
from spaces.models.create import ModelConfig, create_model
from spaces.tensors import save_tensors

ROOT = Path(__file__).parents[1]
SIZES = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 2}
MODEL = ["--model", "vit_tiny_patch16_224", "--num-classes", "10", "--mean", "0.3", "--std", "0.37", "--crop-pct", "1.0"]
KWARGS = ["--model-kwargs", *(f"{key}={value}" for key, value in SIZES.items())]
DATA = ["--dataset", "digits", "--hflip", "0.0", "--batch-size", "32", "--calibration-size", "256", "--target", "flops=60%"]
RUN = [
    "--device",
    "cpu",
    "--threads",
    "1",
    "--lr",
    "5e-4",
    "--rungs",
    "0.25",
    "0.5",
    "--no-tokens",
    "--no-drop",
    "--profile-images",
    "64",
]
RAY = {workers: ["--runner", "ray", "--parallel", str(workers)] for workers in (1, 2, 3)}
IN_PROCESS = ["--runner", "in-process"]

Kind = Literal["worker", "driver", "raylet", "gcs"]
KINDS: dict[Kind, str] = {"worker": "ray::Worker", "raylet": "raylet/raylet", "gcs": "gcs/gcs_server"}
_MANY = 100_000  # trials: a search that ends by itself only when all kills are done


class Launches:
    """All launches of one run, each a session of processes of its own.

    Args:
        folder: for the run, the dense model and the log.
        steps: of every fine-tune.
    """

    def __init__(self, folder: Path, steps: int, *options: str) -> None:
        self.run, self.log, checkpoint = folder / "run", folder / "log.txt", folder / "dense.safetensors"
        torch.manual_seed(0)
        model = create_model(ModelConfig(model=MODEL[1], num_classes=10, model_kwargs=dict(SIZES)))
        save_tensors(checkpoint, model.state_dict())
        script = [sys.executable, str(ROOT / "run_search.py"), "launch", *MODEL, *KWARGS, *DATA, *RUN]
        self._command = [*script, "--checkpoint", str(checkpoint), "--steps", str(steps), "--output", str(self.run), *options]
        self._sessions: list[int] = []
        self.driver: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Launch, or launch again."""
        with self.log.open("a") as log:
            print(f"--- launch {' '.join(options)}", file=log, flush=True)
            self.driver = subprocess.Popen([*self._command, *options], stdout=log, stderr=log, start_new_session=True)
        self._sessions.append(self.driver.pid)

    def processes(self, kind: Kind | None = None) -> list[Any]:
        """Those of any launch that live, or those of one kind."""
        return [process for process in psutil.process_iter() if self._is(process, self._sessions, kind)]

    def latest(self, kind: Kind) -> list[Any]:
        """Those of one kind that work for the latest launch: of one before, they are about to end by themselves."""
        if kind != "driver":
            return [process for process in psutil.process_iter() if self._is(process, self._sessions[-1:], kind)]
        return [] if self.driver is None or self.driver.poll() is not None else [psutil.Process(self.driver.pid)]

    def kill(self, process: Any) -> bool:
        """Whether it was this that ended it."""
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            return False
        driver = self.driver is not None and process.pid == self.driver.pid
        return not driver or self.ended(PATIENCE) == -signal.SIGKILL

    def finished(self) -> dict[int, float]:
        """Number and error of the trials that trials.csv shows as complete; empty while there is none."""
        try:
            table = pd.read_csv(self.run / "trials.csv")
        except (FileNotFoundError, pd.errors.EmptyDataError):
            return {}
        return dict(table[table["state"] == "COMPLETE"][["number", "error"]].itertuples(index=False, name=None))

    def ended(self, seconds: float) -> int:
        """Exit status of the driver."""
        assert self.driver is not None
        return self.driver.wait(timeout=seconds)

    def close(self) -> None:
        """Leave nothing behind, whatever a test has found."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self.driver is not None:
            self.driver.wait()

    @staticmethod
    def _is(process: Any, sessions: Sequence[int], kind: Kind | None) -> bool:
        try:
            if os.getsid(process.pid) not in sessions or process.status() == psutil.STATUS_ZOMBIE:
                return False
            return kind is None or KINDS[kind] in process.cmdline()[0]
        except (psutil.Error, ProcessLookupError, IndexError):
            return False


@dataclass
class Tally:
    """What happened to a search under fire.

    Attributes:
        kills: by kind.
        relaunches: of the driver, after its own kills and where it ended for another reason.
        ends: exit statuses of drivers that were not killed themselves.
        recovery: by kind, seconds from a kill to the next trial that finished, where nothing else was killed in between.
        stalls: kills that found no process in time, and kills after which nothing finished in time.
        shown: number -> error of every trial that trials.csv has ever shown as complete.
        lost: of these, how many were missing or changed at a later look.
    """

    kills: Counter[str] = field(default_factory=Counter)
    relaunches: int = 0
    ends: Counter[int] = field(default_factory=Counter)
    recovery: dict[str, list[float]] = field(default_factory=dict)
    stalls: list[str] = field(default_factory=list)
    shown: dict[int, float] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)

    def look(self, launches: Launches) -> int:
        """Compare what is there with what was there; how many trials have finished."""
        now = launches.finished()
        if now or not self.shown:
            self.lost |= {number for number, error in self.shown.items() if now.get(number) != error}
            self.shown.update(now)
        return len(now)


class Chaos:
    """Kills processes of a search, and launches it again where it ended.

    Args:
        launches: of the search.
        seed: of the moments, the victims and the numbers of workers.
        patience: seconds within which a victim must be found, and a trial finish after a kill.
        report: told of every kill.
    """

    def __init__(
        self, launches: Launches, seed: int, patience: float = PATIENCE, report: Callable[[str], None] = lambda text: None
    ) -> None:
        self.tally = Tally()
        self._launches, self._random, self._patience, self._report = launches, random.Random(seed), patience, report
        self._options = RAY[2]

    def run(self, kinds: Sequence[Kind], extra: int = 4, seconds: float = 1e9) -> int:
        """Carry out kills of these kinds in a random order, within so many seconds, then let the search end.

        Args:
            kinds: of the kills.
            extra: trials beyond those that have finished by then.
            seconds: after which no further kill is begun.

        Returns:
            Exit status of the last launch.
        """
        start, order = time.monotonic(), self._random.sample(list(kinds), len(kinds))
        self._launch()
        for kind in order:
            if time.monotonic() - start > seconds:
                break
            time.sleep(self._random.uniform(0.0, 4.0))
            self._kill(kind)
        return self._finish(extra)

    def _launch(self, trials: int = _MANY) -> None:
        self._launches.start(*self._options, "--trials", str(trials))

    def _kill(self, kind: Kind) -> None:
        found = self._strike(kind)
        if found is None:
            self.tally.stalls.append(f"{kind} to kill")
            return
        kind, before, began = found
        self.tally.kills[kind] += 1
        if kind == "driver":
            self._relaunch()
        elif self._random.random() < 0.3:  # the next one comes while this one is dealt with
            return
        if poll(lambda: self._progress(before), self._patience, pause=0.3):
            self.tally.recovery.setdefault(kind, []).append(time.monotonic() - began)
            self._report(f"{sum(self.tally.kills.values())} {kind}: {time.monotonic() - began:.1f} s")
        else:
            self.tally.stalls.append(kind)
            self._report(f"{sum(self.tally.kills.values())} {kind}: nothing within {self._patience} s")

    def _strike(self, kind: Kind) -> tuple[Kind, int, float] | None:
        """Kill one: its kind, how many trials had finished, and when; waits until there is one, None where none came.

        A search in process has nothing but its driver, and may have been launched while a worker was waited for.
        """
        end = time.monotonic() + self._patience
        while time.monotonic() < end:
            self._revive()
            there: Kind = "driver" if self._options is IN_PROCESS else kind
            victims = sorted(self._launches.latest(there), key=lambda process: process.pid)
            before, began = self.tally.look(self._launches), time.monotonic()
            if victims and self._launches.kill(self._random.choice(victims)):
                return there, before, began
            time.sleep(0.1)
        return None

    def _progress(self, before: int) -> bool:
        self._revive()
        return self.tally.look(self._launches) > before

    def _revive(self) -> None:
        """Launch again where the driver has ended by itself."""
        assert self._launches.driver is not None
        status = self._launches.driver.poll()
        if status is not None:
            self.tally.ends[status] += 1
            self._relaunch()

    def _relaunch(self) -> None:
        assert self._launches.driver is not None
        self._launches.driver.wait()
        self.tally.relaunches += 1
        self._options = self._random.choice([RAY[1], RAY[2], RAY[2], RAY[3], IN_PROCESS])
        self._launch()

    def _finish(self, extra: int) -> int:
        """End the search as a scheduler would: it is stopped, and launched for a number of trials."""
        assert self._launches.driver is not None
        self._launches.driver.terminate()
        self._launches.ended(self._patience)
        self.tally.look(self._launches)
        trials = self._told() + extra
        self._options = RAY[2]
        self._launch(trials)
        status = self._launches.ended(self._patience)
        self.tally.look(self._launches)
        self.wanted = trials
        return status

    def _told(self) -> int:
        """Trials in the journal."""
        return len(journal_of(self._launches.run))


def journal_of(run: Path) -> list[optuna.trial.FrozenTrial]:
    """The trials of a run's journal, read by Optuna alone."""
    path = run / "study.journal"
    copy = path.with_name(".copy")
    copy.write_bytes(path.read_bytes().rpartition(b"\n")[0] + b"\n")
    try:
        storage = JournalStorage(JournalFileBackend(str(copy)))
        return storage.get_all_trials(storage.get_all_studies()[0]._study_id)
    finally:
        copy.unlink()


def faults_of(run: Path) -> Iterator[str]:
    """All that is wrong in a run that has ended: journal, tables, weights and files against each other."""
    journal, table = {trial.user_attrs["number"]: trial for trial in journal_of(run)}, pd.read_csv(run / "trials.csv")
    if len(journal) != len(journal_of(run)):
        yield "a number is twice in the journal"
    if sorted(journal) != sorted(table["number"]):
        yield f"trials.csv has {sorted(table['number'])}, the journal {sorted(journal)}"
    done = table[table["state"] == "COMPLETE"]
    for number, error in done[["number", "error"]].itertuples(index=False):
        if journal[number].values is None or journal[number].values[0] != error:
            yield f"trial {number} has error {error} in trials.csv, {journal[number].values} in the journal"
    told = (trial.user_attrs for trial in journal.values() if trial.values)
    tunes = Counter(json.dumps([entry["allocation"], entry["seed"]], sort_keys=True) for entry in told)
    yield from (f"evaluated {count} times: {tune}" for tune, count in tunes.items() if count > 1)
    yield from _front_faults(run, done)
    yield from _file_faults(run, journal)


def _front_faults(run: Path, done: pd.DataFrame) -> Iterator[str]:
    expected = done["expected"].fillna(done["error"])
    points = list(zip(done["number"], expected, done["macs"], strict=True))
    front = {
        number
        for number, error, macs in points
        if not any(e <= error and m <= macs and (e < error or m < macs or n < number) for n, e, m in points)
    }
    shown = {row["number"] for row in json.loads((run / "pareto.json").read_text())["front"]}
    if shown != front:
        yield f"the front is {sorted(front)}, pareto.json has {sorted(shown)}"
    dense = set(done[done["label"] == "dense"]["number"])
    kept = {int(path.stem) for path in (run / "front").glob("*.safetensors")}
    if not kept <= front - dense:  # one that comes back to the front, when more is known of its error, has none any more
        yield f"weights of {sorted(kept)}, the front without the dense reference is {sorted(front - dense)}"
    yield from (f"{path} is empty" for path in (run / "front").iterdir() if not load_file(path))


def _file_faults(run: Path, journal: dict[int, optuna.trial.FrozenTrial]) -> Iterator[str]:
    for pattern in ("**/.*.partial", f"trials/*/{WEIGHTS}", f"trials/*/{CHECKPOINT}", ".copy"):
        yield from (f"left behind: {path}" for path in run.glob(pattern))
    for number, trial in journal.items():
        folder = run / "trials" / f"{number:04d}"
        written = json.loads((folder / "allocation.json").read_text())
        if any(written[key] != trial.user_attrs[key] for key in ("number", "allocation", "seed", "space", "label")):
            yield f"trial {number} differs from its allocation.json"
        if trial.values:
            lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            if lines[-1]["error"] != trial.values[0]:
                yield f"metrics.jsonl of trial {number} ends with error {lines[-1]['error']}, not {trial.values[0]}"
