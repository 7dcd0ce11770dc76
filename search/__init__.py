"""How points are chosen, run, compared and handed over."""

from search.config import SearchConfig
from search.deploy.session import export
from search.driver.launch import launch
from search.fidelity.audit import audit
from search.run.run import Run, open_run

__all__ = ["Run", "SearchConfig", "audit", "export", "launch", "open_run"]
