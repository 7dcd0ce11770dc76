"""predict: images classified with an exported folder."""

import argparse
from pathlib import Path

from rich.console import Console

from objectives.deploy.config import check_top
from search.run.places import check_exported
from search.terminal.output import console_of, print_path
from spaces.errors import printable
from spaces.folder.description import read_description


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Print the classes of every image; 2 where one of them cannot be read."""
    check_top(arguments.top)
    folder = Path(arguments.folder)
    check_exported(folder, "predict")
    read_description(folder)  # a damaged folder is told before anything is imported that runs models

    from objectives.deploy.classify import Unread, classify

    problems, unread = console_of(stderr=True), 0
    for answer in classify(folder, arguments.images, arguments.format, arguments.top, lambda text: print_path(problems, text)):
        if isinstance(answer, Unread):
            unread += 1
            print_path(problems, f"error: {answer.problem}")
        else:
            print_path(console, f"{printable(str(answer.image))}: {answer.text}")
    return 2 if unread else 0
