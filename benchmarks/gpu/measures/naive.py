"""The engine beside the naive search of `benchmarks/throughput.py`: what a candidate costs at the same steps."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpu.rows import Figures
from gpu.setting import Setting

SCRIPT = Path(__file__).parents[2] / "throughput.py"
_STEPS, _CANDIDATES = 100, 3  # the first candidate of a process also pays for what all share


def measure(unit: str, setting: Setting, known: Mapping[str, Figures]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Both engines at the budgets that the unit names, turn by turn; what is measured is kept in the script's own folder.

    Raises:
        RuntimeError: the script failed.
    """
    folder = setting.folder / f"throughput{'-tiny' if setting.tiny else ''}"
    size = ["--steps", str(_STEPS), "--count", str(_CANDIDATES), "--turns", "1"]
    options = ["--tiny"] if setting.tiny else ["--data", "random", *size, "--budgets", *unit.replace(" %", "").split(" and ")]
    command = [sys.executable, str(SCRIPT), "candidates", "--device", setting.device, "--output", str(folder), *options]
    status = subprocess.run(command).returncode
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines() if not status else []
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in map(json.loads, lines):
        groups.setdefault(f"{record['key']['engine']}, {record['key']['budget']:.0f} %", []).append(record)
    for name, records in groups.items():
        yield name, _figures(records)
    if status:
        raise RuntimeError(f"{SCRIPT.name} ended with status {status}: see the log")


def _figures(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of a candidate after the first one, by the clock, of the CPU, and by stage."""
    first, *_, last = records
    count = len(records) - 1
    stages = {name: (seconds - first["seconds"].get(name, 0.0)) / count for name, seconds in last["seconds"].items()}
    return {
        "seconds": (last["wall"] - first["wall"]) / count,
        "CPU seconds": (last["cpu"] - first["cpu"]) / count,
        "first candidate": first["wall"],
        **{f"{name}, s": seconds for name, seconds in stages.items()},
    }
