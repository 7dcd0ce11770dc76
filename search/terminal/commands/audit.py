"""audit: long fine-tunes of a run's front."""

import argparse
from pathlib import Path

from rich.console import Console

from search.fidelity.options import check_size
from search.run.places import check_is_run
from search.terminal.output import print_path


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Audit a run, and say what was found."""
    check_size(arguments.points, arguments.factor, arguments.seeds)
    check_is_run(Path(arguments.run))

    from search.fidelity.audit import audit
    from search.run.run import open_run
    from search.terminal.display import Display
    from search.terminal.quiet import quiet_optuna
    from search.terminal.tables import audit_view

    quiet_optuna()
    opened = open_run(arguments.run)
    with Display(console) as display:
        found = audit(opened, arguments.points, arguments.factor, arguments.seeds, display.stage, display.notice)
    for table in audit_view(found):
        console.print(table)
    print_path(console, f"report: {opened.directory / 'report.html'}")
