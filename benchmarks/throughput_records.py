"""What benchmarks/throughput.py measures, as lines of JSON that are written at once and read again."""

import json
import os
import resource
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import stages


@dataclass(frozen=True, kw_only=True)
class Key:
    """What belongs together.

    Attributes:
        case: data, model, steps, device and seed, as a person reads them.
        part: search, candidates or budget.
        engine: which.
        budget: in % of the MACs; None where all are searched.
        turn: of the candidates.
    """

    case: str
    part: str
    engine: str
    budget: float | None = None
    turn: int = 0


@dataclass(frozen=True, kw_only=True)
class Record:
    """A candidate, and what had been spent when it was done.

    Attributes:
        key: what it belongs to.
        process: seconds since the epoch at which its process began.
        number: of the candidate, from 0.
        share: of the dense model's MACs.
        error: on the search split, in [0, 1].
        test: error on the test split, where it was measured.
        cpu, wall: seconds, with those of earlier processes up to their last record.
        seconds: stage -> seconds so far, likewise.
        sizes: layer -> share, where they are needed again.
    """

    key: Key
    process: int
    number: int
    share: float
    error: float
    test: float | None = None
    cpu: float
    wall: float
    seconds: Mapping[str, float] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)


def read(path: Path) -> list[Record]:
    """The records so far, without a line that was not finished."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        found.append(Record(**{**entry, "key": Key(**entry["key"])}))
    return found


class Log:
    """Where one process writes the records of a key.

    Args:
        path: the file.
        key: of all that this process measures.
        resumed: whether to go on where an earlier process stopped; else this process begins anew.

    Attributes:
        key: as given.
        done: the records of earlier processes.
    """

    def __init__(self, path: Path, key: Key, resumed: bool = True) -> None:
        self._path, self.key, self._process = path, key, int(time.time())
        self.done = [record for record in read(path) if record.key == key] if resumed else []

    def add(
        self, number: int, share: float, error: float, seconds: Mapping[str, float], sizes: Mapping[str, float] | None = None,
        test: float | None = None,
    ) -> None:  # fmt: skip
        """Write a candidate that was done now; `seconds` are those of this process."""
        before = self.done[-1] if self.done else None
        totals = dict(before.seconds) if before else {}
        for stage, value in seconds.items():
            totals[stage] = totals.get(stage, 0.0) + value
        record = Record(
            key=self.key, process=self._process, number=number, share=share, error=error, test=test,
            cpu=cpu_seconds() + (before.cpu if before else 0.0),
            wall=time.perf_counter() - stages.BEGAN + (before.wall if before else 0.0),
            seconds={stage: round(value, 4) for stage, value in totals.items()}, sizes=sizes or {},
        )  # fmt: skip
        self._path.parent.mkdir(parents=True, exist_ok=True)
        whole = not self._path.exists() or self._path.read_bytes()[-1:] in (b"\n", b"")
        with self._path.open("a", encoding="utf-8") as file:
            file.write(("" if whole else "\n") + json.dumps(asdict(record)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        error_text = f"{error:.2%}, test {test:.2%}" if test is not None else f"{error:.2%}"
        print(f"{self.key.engine} {number}: {share:.1%} of the MACs, error {error_text}, CPU {record.cpu:.1f} s", flush=True)


def cpu_seconds() -> float:
    """CPU seconds of this process since its start, and of the loaders that it has ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime
