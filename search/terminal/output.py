"""Where commands print to."""

import sys

from rich.console import Console

_WIDTH = 130  # of output that goes to a file


def console_of(stderr: bool = False) -> Console:
    """Prints names as they are: brackets in them are no markup, and colons no emoji."""
    width = None if stderr or sys.stdout.isatty() else _WIDTH
    return Console(stderr=stderr, width=width, markup=False, emoji=False)


def print_path(console: Console, text: str) -> None:
    """Print a line with a path, without breaking or colouring it."""
    console.print(text, highlight=False, soft_wrap=True)
