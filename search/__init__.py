"""How points are chosen, run, compared and handed over."""

from search.audit import audit
from search.config import SearchConfig
from search.exports import export
from search.launch import launch
from search.run import Run, open_run

__all__ = ["Run", "SearchConfig", "audit", "export", "launch", "open_run"]
