"""report.html, pareto.png and pareto.svg: what a search found, to be kept and sent."""

from search.report.html import assemble, page
from search.report.page_data import content_of
from search.run.run import Run
from spaces.files import write_text


def render(run: Run) -> None:
    """Write report.html, and from the first trial on pareto.png and pareto.svg, from the run's tables."""
    write_text(run.directory / "report.html", page(assemble([content_of(run)])))
    if not run.ended:
        return
    from search.report.front_image import write_pictures  # importing matplotlib takes a second, and workers draw nothing

    write_pictures([run.directory / "pareto.png", run.directory / "pareto.svg"], run.summary, run.ended)
