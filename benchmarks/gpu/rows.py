"""What was measured, as JSON lines: one row a measurement, appended at once, so that what stops a unit loses only the next."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

END = "end"  # `what` of the row that says how a unit ended
DONE, FAILED, STOPPED, SKIPPED = "done", "failed", "stopped", "skipped"
Figures = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement, or the end of a unit.

    Attributes:
        part, unit: whose.
        what: which measurement; `END` for the unit's end.
        figures: name -> value. Of an end: state, reason and seconds.
        machine: name -> value: device and versions; empty where the unit did not start.
        device: as torch names it.
        tiny: as of `Setting`.
        at: when, as ISO 8601 in UTC.
    """

    part: str
    unit: str
    what: str
    figures: Figures
    device: str
    tiny: bool
    machine: Mapping[str, str] = field(default_factory=dict)
    at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def append(path: Path, row: Row) -> None:
    """Add a row, in one write: rows of processes that write at once do not mix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("ab", buffering=0) as file:
        file.write((("\n" if torn else "") + json.dumps(asdict(row)) + "\n").encode())


def read(path: Path) -> list[Row]:
    """All rows in the order of writing; a line that a kill has torn is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(Row(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return rows


def of(rows: Iterable[Row], device: str, tiny: bool) -> list[Row]:
    """Those of one device and size."""
    return [row for row in rows if (row.device, row.tiny) == (device, tiny)]


def latest(rows: Iterable[Row]) -> dict[tuple[str, str], dict[str, Row]]:
    """(part, unit) -> what -> the last row of it. An end counts until the unit is measured again."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        found.setdefault((row.part, row.unit), {})[row.what] = row
    return found


def measured(rows: Iterable[Row], part: str, unit: str) -> dict[str, Figures]:
    """What -> figures of what is known of a unit, its end apart."""
    found = latest(rows).get((part, unit), {})
    return {what: row.figures for what, row in found.items() if what != END}


def state(rows: Iterable[Row], part: str, unit: str) -> str | None:
    """How a unit ended last; None where it has not."""
    end = latest(rows).get((part, unit), {}).get(END)
    return None if end is None else str(end.figures["state"])
