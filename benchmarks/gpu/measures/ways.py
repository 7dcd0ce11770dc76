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
_NAMES = {"way", "share"}  # of a row of that script: what it is a row of


def measure(unit: str, setting: Setting, known: Mapping[str, Figures]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The ways that the unit names, and the base, at three shares of the MACs.

    Raises:
        RuntimeError: the script failed; what it wrote before counts.
    """
    rows = setting.folder / f"ways-{'-'.join(unit.split())}{'-tiny' if setting.tiny else ''}.jsonl"
    rows.unlink(missing_ok=True)
    size = ["--tiny"] if setting.tiny else ["--model", MODEL, "--steps", str(_STEPS), "--share", "0.12", "0.5", "1.0"]
    ways = ["base", *(["amp"] if "bf16" in unit else []), *unit.split()]
    command = [sys.executable, str(SCRIPT), "--device", setting.device, "--ways", *ways, *size, "--out", str(rows)]
    process = subprocess.Popen(command)
    done = 0
    while True:
        ended = _ended(process)
        lines = rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []
        for line in lines[done:] if ended else lines[done:-1]:
            figures = json.loads(line)
            yield f"{figures['way']}, {figures['share']:.0%}", {k: v for k, v in figures.items() if k not in _NAMES}
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
