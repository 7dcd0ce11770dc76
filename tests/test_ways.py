"""The benchmark of ways to take a step: its lines, and that what a way makes impossible ends no other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WAYS = ("base", "fused", "padded+lazy", "bf16", "graph", "sideways")


@pytest.mark.slow
def test_every_way_has_a_line_with_its_figures_or_its_error(tmp_path: Path) -> None:
    output = tmp_path / "ways.jsonl"
    command = [sys.executable, "benchmarks/ways.py", "--tiny", "--share", "0.3", "--out", str(output), "--ways", *WAYS]
    subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, check=True, capture_output=True
    )
    rows = {row["way"]: row for row in map(json.loads, output.read_text().splitlines())}
    assert tuple(rows) == WAYS
    assert "no graphs on cpu" in rows["graph"]["error"]
    assert "unknown way 'sideways'" in rows["sideways"]["error"]
    moved = rows["base"]["kl_moved"]
    assert rows["base"]["kl"] == 0 < moved
    for way in ("fused", "padded+lazy"):
        assert abs(rows[way]["kl"]) < 1e-4 * moved, way
    assert 1e-9 < rows["bf16"]["kl"] < 0.05 * moved
    assert all(row["ms"] > 0 and row["share"] == 0.3 for row in rows.values() if "error" not in row)
