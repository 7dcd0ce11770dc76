"""A picture of a run's page, as headless Chromium shows it.

python benchmarks/screenshot.py runs/demo docs/page.png
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from local_browser import browser

from search import open_run
from search.report.write import render


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run directory; its report.html is written anew")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--theme", choices=("light", "dark"), default="light")
    arguments = parser.parse_args()
    run = open_run(arguments.run)
    render(run)
    with browser(viewport={"width": arguments.width, "height": 900}, color_scheme=arguments.theme) as visit:
        page = visit.open((run.directory / "report.html").resolve().as_uri())
        page.screenshot(path=arguments.picture, full_page=True)
    print(f"{arguments.picture}: {arguments.picture.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
