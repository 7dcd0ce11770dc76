"""How points are chosen, run, compared and handed over."""

from search.config import SearchConfig
from search.export import export
from search.launch import launch
from search.run import Run, open_run

__all__ = ["Run", "SearchConfig", "export", "launch", "open_run"]
