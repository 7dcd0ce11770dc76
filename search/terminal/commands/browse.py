"""browse: runs in the browser, as tables, or in optuna-dashboard."""

import argparse
import webbrowser
from pathlib import Path

from rich.console import Console

from search.layout import LOCK
from search.run.places import check_any_run
from search.terminal.output import print_path


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Show runs until Ctrl-C, or print their fronts."""
    directories = [Path(run) for run in arguments.runs]
    if arguments.text:
        check_any_run(directories)
        _print_fronts(directories, console)
    elif arguments.dashboard:
        _serve_dashboard(directories, arguments, console)
    else:
        _serve(directories, arguments, console)


def _print_fronts(directories: list[Path], console: Console) -> None:
    from search.terminal.tables import fronts

    for line in fronts(directories):
        console.print(line, soft_wrap=isinstance(line, str))


def _serve(directories: list[Path], arguments: argparse.Namespace, console: Console) -> None:
    _check_readable(directories)

    from search.browse.server import listen, serve

    listener = listen(arguments.host, arguments.port)
    _announce(", ".join(arguments.runs), listener.getsockname()[1], arguments, console)
    serve(directories, listener, arguments.host)


def _serve_dashboard(directories: list[Path], arguments: argparse.Namespace, console: Console) -> None:
    _check_readable(directories)

    from search.browse.optuna_dashboard import check_installed, serve_dashboard, snapshot
    from search.browse.server import listen
    from search.terminal.quiet import quiet_optuna

    check_installed()
    quiet_optuna()
    studies = snapshot(directories, arguments.storage)
    listener = listen(arguments.host, arguments.port)
    _announce(f"a snapshot of {', '.join(arguments.runs)}", listener.getsockname()[1], arguments, console)
    serve_dashboard(studies, listener, arguments.host)


def _check_readable(directories: list[Path]) -> None:
    """Raise where none of the runs can be read; one that is being started has its lock alone, and is waited for."""
    if any((directory / LOCK).exists() for directory in directories):
        return
    check_any_run(directories)

    from search.report.comparison import opened

    opened(directories)


def _announce(what: str, port: int, arguments: argparse.Namespace, console: Console) -> None:
    """Say where the page is, and open it."""
    name = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    url = f"http://{name}:{port}/"
    print_path(console, f"{what} at {url} (Ctrl-C ends it)")
    if not arguments.no_open:
        webbrowser.open(url)
