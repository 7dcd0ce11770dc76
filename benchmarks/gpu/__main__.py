"""Run what needs a GPU, part by part, and write what came out as a page.

    make gpu                                      # in the order of the parts, for 9 minutes at most
    make gpu PARTS="recipes search" MINUTES=9     # another call goes on where the last one stopped
    make gpu GPU_OPTIONS="--device cpu --tiny"    # whether the script runs: seconds a part, and figures that say nothing

Every measurement is appended to rows.jsonl in the folder, and is not made again there: calls share the work, and what is
stopped keeps what it has. The page is made of all rows. What fails or is skipped is tried again by the next call.
"""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

from gpu.driver import Driver
from gpu.page import write_pages
from gpu.parts import PARTS
from gpu.setting import Setting


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="only these, in this order")
    parser.add_argument("--minutes", type=float, default=9.0, help="in all")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="models and lengths of seconds")
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu"), help="of the rows, the dense model and the runs")
    parser.add_argument("--data", type=Path, default=Path("data"), help="of Fashion-MNIST, packed or unpacked")
    parser.add_argument("--page", type=Path, default=Path("benchmarks/results"), help="folder of the page")
    parser.add_argument("--loaders", type=int, default=max(1, (os.cpu_count() or 1) // 2), help="processes that read images")
    given = parser.parse_args()
    setting = Setting(
        device=given.device,
        tiny=given.tiny,
        folder=given.folder.resolve(),
        data=given.data.resolve(),
        loaders=0 if given.tiny else given.loaders,
    )
    signal.signal(signal.SIGTERM, _stop)
    Driver(setting, 60 * given.minutes, lambda: write_pages(setting.rows, given.page)).run(given.part)
    for path in write_pages(setting.rows, given.page):
        print(path)


def _stop(number: int, frame: Any) -> None:
    sys.exit(f"stopped by {signal.Signals(number).name}")


if __name__ == "__main__":
    main()
