"""How fast the page of a long search opens and answers, in headless Chromium.

    python benchmarks/page.py --trials 100 1000 2000

Made-up tables of a search over the 36 sites of a DeiT-S. "Opens": from the request to the drawn front. "Answers": from a click
on a point to the next frame in which its allocation is shown. "Zooms": from new axis ranges to the next frame.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from local_browser import Visit, browser
from local_pages import write_made_up

_FRAME = "await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));"
_ANSWER = f"async (number) => {{ const from = performance.now(); pick(0, number); {_FRAME} return performance.now() - from; }}"
_ZOOM = f"""async (top) => {{
  const from = performance.now();
  await Plotly.relayout("plot", {{ "xaxis.range": [10, top], "yaxis.range": [20, 40] }});
  {_FRAME}
  return performance.now() - from;
}}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 2000])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print("| trials | file, MB | opens, s | answers a click, ms | zooms, ms |\n|---|---|---|---|---|")
    for trials in arguments.trials:
        print(measure(trials, arguments.repeats), flush=True)


def measure(trials: int, repeats: int) -> str:
    """A row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        write_made_up(path, trials)
        with browser(viewport={"width": 1280, "height": 900}) as visit:
            visit.open(path.as_uri())  # the first visit starts the browser's processes
            opens = [_opens(visit, path) for _ in range(repeats)]
            numbers = visit.page.evaluate("Object.keys(runs[0].points).map(Number)")
            answers = [visit.page.evaluate(_ANSWER, number) for number in numbers[1 : repeats + 1]]
            zooms = [visit.page.evaluate(_ZOOM, 60 + at) for at in range(repeats)]
        size = path.stat().st_size / 1e6
    return f"| {trials:,} | {size:.1f} | {_spread(opens, '.2f')} | {_spread(answers, '.0f')} | {_spread(zooms, '.0f')} |"


def _opens(visit: Visit, path: Path) -> float:
    began = time.perf_counter()
    visit.open(path.as_uri())
    visit.page.evaluate(f"async () => {{ {_FRAME} }}")
    return time.perf_counter() - began


def _spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


if __name__ == "__main__":
    main()
