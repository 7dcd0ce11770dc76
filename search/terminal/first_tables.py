"""The first answer of a run, as the command line prints it."""

from collections.abc import Iterator

from rich.table import Table

from search.report.first_shown import first_shown
from search.run.first_answer import READING, FirstAnswer


def first_tables(answer: FirstAnswer) -> Iterator[Table]:
    """A table for every cost that was asked about, from the largest share."""
    for shown in first_shown(answer):
        table = Table(title=f"First answer, before any fine-tune: {shown.sentence}", title_justify="left")
        table.caption, table.caption_justify = f"as built, on {shown.images} training images; {READING}", "left"
        for name in shown.columns:
            table.add_column(name, justify="right", no_wrap=True)
        for row in shown.rows:
            table.add_row(*row.texts, style="bold" if row.is_bend else None)
        yield table
