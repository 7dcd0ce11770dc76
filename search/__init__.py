"""How points are chosen, run, compared and handed over."""

from typing import TYPE_CHECKING

from spaces.lazy import lazily

if TYPE_CHECKING:
    from search.config import SearchConfig
    from search.deploy.session import export
    from search.driver.launch import launch
    from search.fidelity.audit import audit
    from search.run.run import Run, open_run

__all__ = ["Run", "SearchConfig", "audit", "export", "launch", "open_run"]

__getattr__ = lazily(
    __name__,
    {
        "Run": "search.run.run",
        "SearchConfig": "search.config",
        "audit": "search.fidelity.audit",
        "export": "search.deploy.session",
        "launch": "search.driver.launch",
        "open_run": "search.run.run",
    },
)
