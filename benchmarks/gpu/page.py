"""The page of all rows: what was measured where, a table a part, what it says, and what was skipped or failed."""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from gpu.findings import FINDINGS
from gpu.parts import PARTS, Part
from gpu.rows import DONE, END, Figures, Row, latest, read

_LEFT_OUT = ("allocation",)  # figures that are for another unit or for a finding


def write_pages(rows: Path, folder: Path) -> list[Path]:
    """Write the page of every device and size that there are rows of; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, everything = [], read(rows)
    for device, tiny in dict.fromkeys((row.device, row.tiny) for row in everything):
        found = [row for row in everything if (row.device, row.tiny) == (device, tiny)]
        path = folder / f"gpu_{_slug(found)}{'-tiny' if tiny else ''}_{datetime.fromisoformat(found[-1].at):%Y%m}.md"
        path.write_text(render(found), encoding="utf-8")
        paths.append(path)
    return paths


def render(rows: Sequence[Row]) -> str:
    """The page of the rows of one device and size."""
    found = latest(rows)
    lines = ["# What needs a GPU", "", "    make gpu", ""]
    if rows[0].tiny:
        lines += ["**Made with --tiny: that the script runs, and nothing else.**", ""]
    lines += ["Conditions: " + "; ".join(_machines(rows)) + ".", ""]
    lines += ["| part | unit | state | seconds | why |", "|---|---|---|---|---|"]
    for name, part in PARTS.items():
        for unit in _units(name, part, found):
            end = found.get((name, unit), {}).get(END)
            state = {"state": "not tried", "seconds": "", "reason": ""} if end is None else dict(end.figures)
            lines.append(f"| {name} | {unit} | {state['state']} | {state['seconds']} | {_cell(state['reason'])} |")
    for name, part in PARTS.items():
        units = {unit: whats for (its, unit), whats in found.items() if its == name}
        lines += _part(name, part, units)
    return "\n".join(lines) + "\n"


def _part(name: str, part: Part, units: Mapping[str, Mapping[str, Row]]) -> list[str]:
    """The table of a part, and what it says; nothing where nothing was measured."""
    figures = {(unit, what): row.figures for unit, whats in units.items() for what, row in whats.items() if what != END}
    if not figures:
        return []
    whole = all(END in whats and whats[END].figures["state"] == DONE for whats in units.values())
    lines = ["", f"## {part.title} (`{name}`)", "", *_table(figures)]
    try:
        said = FINDINGS[name](figures) if name in FINDINGS else []
    except (KeyError, ValueError, ZeroDivisionError) as error:
        said = [] if not whole else [f"What this says could not be told: {type(error).__name__} {error}"]
    return [*lines, *([""] if said else []), *(f"- {line}" for line in said)]


def _table(figures: Mapping[tuple[str, str], Figures]) -> list[str]:
    columns = list(dict.fromkeys(name for values in figures.values() for name in values if name not in _LEFT_OUT))
    lines = ["| unit | measured | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for (unit, what), values in figures.items():
        lines.append(f"| {unit} | {what} | " + " | ".join(_cell(values.get(column, "–")) for column in columns) + " |")
    return lines


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "/")


def _machines(rows: Iterable[Row]) -> list[str]:
    """Each machine once, with the parts that were measured on it."""
    parts: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.machine:
            text = ", ".join(f"{name} {value}" for name, value in row.machine.items())
            parts.setdefault(f"{row.at[:7]}, {text}", {})[row.part] = None
    return [f"{text} ({', '.join(names)})" for text, names in parts.items()] or ["nothing was started"]


def _units(name: str, part: Part, found: Mapping[tuple[str, str], Any]) -> list[str]:
    """Those of the part, and those that there are rows of: a tiny part has fewer."""
    known = [unit for its, unit in found if its == name]
    return list(dict.fromkeys([*(part.units if not known else ()), *known]))


def _slug(rows: Sequence[Row]) -> str:
    """The device that was measured last, for a file's name: `h100-80gb-hbm3`; `cpu` for a CPU."""
    if rows[0].device == "cpu":
        return "cpu"
    names = [row.machine["device"] for row in rows if row.machine]
    return re.sub(r"[^0-9a-z]+", "-", names[-1].lower().removeprefix("nvidia ")).strip("-") if names else rows[0].device
