"""What is said of a search when a launch of it ends: what a further trial would be worth, and what more seeds would."""

from search.evidence.intervals import WIDTH
from search.run.summary import RunSummary
from search.study.study import Study


def closing(study: Study, summary: RunSummary) -> list[str]:
    """Sentences for a person.

    Args:
        study: of the search.
        summary: of its run.
    """
    found = []
    if study.is_settled:
        found.append(f"settled: the search ended after {len(study.trials)} trials, as --until-settled asks for")
    if (worth := summary.worth) is not None:
        found.append(
            f"a further trial is expected to lower the front by {100 * worth.gain:.2g} points of error; "
            f"it is known to ±{100 * WIDTH * worth.known_to:.2g} points"
        )
    if study.stuck:
        images = summary.dense.images
        found.append(f"more seeds cannot tell the best under a target apart: the {images} search images are too few")
    return found
