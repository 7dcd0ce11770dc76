"""report.html and pareto.png: what a search found, to be kept and sent."""

from search.page import content_of, page
from search.picture import write_picture
from search.run import Run
from spaces.files import write_text


def render(run: Run) -> None:
    """Write report.html and pareto.png from the run's tables."""
    write_text(run.directory / "report.html", page(content_of(run)))
    write_picture(run.directory / "pareto.png", run.summary, run.trials)
