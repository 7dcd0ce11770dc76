"""The page of made-up tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from search.page import content, page
from spaces.files import write_text
from spaces.sites import Site


def write_report(
    path: Path, summary: dict[str, Any], trials: pd.DataFrame, sites: Sequence[Site], run: str = "RUN", **options: Any
) -> None:
    """Write the page as a file."""
    write_text(path, page(content(summary, trials, sites, run=run, **options)))
