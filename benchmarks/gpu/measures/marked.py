"""The tests that are marked `gpu`: which passed, and why the others did not."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gpu.rows import Figures
from gpu.setting import Setting

ROOT = Path(__file__).parents[3]


def measure(unit: str, setting: Setting, known: Mapping[str, Figures]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run them; one row for all, and one for every test that failed.

    Raises:
        RuntimeError: no test was found, or pytest did not get as far as running them.
    """
    files = [str(path) for path in sorted(ROOT.glob("tests/test_*.py")) if "mark.gpu" in path.read_text(encoding="utf-8")]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-rA", f"--junitxml={report}", *files]
        # Here a warning that another version of a library gives is no failure.
        code = subprocess.run([*command, "-o", "filterwarnings=default"], cwd=ROOT).returncode
        if not report.exists() or code not in (0, 1):
            raise RuntimeError(f"pytest ended with status {code}: see the log")
        cases = list(ElementTree.parse(report).iter("testcase"))
    ended = {f"{case.get('classname')}::{case.get('name')}": case for case in cases}
    troubles = ((name, trouble) for name, case in ended.items() for trouble in (*case.iter("failure"), *case.iter("error")))
    failed = dict(troubles)
    skipped = sum(case.find("skipped") is not None for case in cases)
    passed = len(cases) - len(failed) - skipped
    for name, found in failed.items():
        yield name, {"failed": " ".join((found.get("message") or "").split())[:300]}
    yield "all", {"passed": passed, "failed": len(failed), "skipped": skipped}
