"""The ways to take a step of `benchmarks/ways.py`, each beside the base: milliseconds a step, and what it costs to prepare."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpu.rows import Figures
from gpu.setting import Setting

SCRIPT = Path(__file__).parents[2] / "ways.py"
MODEL = "vit_small_patch16_224"
_STEPS = 30
_FIGURES = ("ms", "ms_least", "ms_most", "preparation_s", "share_of_base", "pays_after_steps", "kl", "kl_moved", "error")


def measure(unit: str, setting: Setting, known: Mapping[str, Figures]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The ways that the unit names, and the base, at three shares of the MACs.

    Raises:
        RuntimeError: the script failed; what it wrote before counts.
    """
    rows = setting.folder / f"ways-{'-'.join(unit.split())}{'-tiny' if setting.tiny else ''}.jsonl"
    rows.unlink(missing_ok=True)
    size = (
        ["--tiny", "--share", "0.5"]
        if setting.tiny
        else ["--model", MODEL, "--steps", str(_STEPS), "--share", "0.12", "0.5", "1.0"]
    )
    ways = ["base", *unit.split()]
    command = [sys.executable, str(SCRIPT), "--device", setting.device, "--ways", *ways, *size, "--out", str(rows)]
    process = subprocess.Popen(command)
    done = 0
    while True:
        ended = _ended(process)
        lines = rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []
        for line in lines[done:] if ended else lines[done:-1]:
            row = json.loads(line)
            gib = {"GiB": row["memory_bytes"] / 2**30} if "memory_bytes" in row else {}
            yield f"{row['way']}, {row['share']:.0%}", {name: row[name] for name in _FIGURES if name in row} | gib
            done += 1
        if ended:
            break
    if process.returncode:
        raise RuntimeError(f"{SCRIPT.name} ended with status {process.returncode}: see the log")


def _ended(process: "subprocess.Popen[bytes]") -> bool:
    """Whether it has ended, after a while."""
    try:
        process.wait(1.0)
    except subprocess.TimeoutExpired:
        return False
    return True
