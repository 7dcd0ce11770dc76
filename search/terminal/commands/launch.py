"""launch: options -> a search, and what came of it."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from search.config import SearchConfig, read_options
from search.driver.demo_options import OPTIONS
from search.run.options import with_stored
from search.run.places import is_run
from search.terminal.commands import export
from search.terminal.inputs import check_inputs
from search.terminal.output import print_path
from search.terminal.parser import build_parser, given_options


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Start a search, or continue the one in its directory."""
    given = {**(read_options(Path(arguments.config)) if arguments.config else {}), **given_options(arguments)}
    options = _with_stored(given)
    is_demo = not any(options.get(name) for name in ("model", "checkpoint", "data_dir", "dataset"))
    if is_demo:
        options = {**OPTIONS, **_with_stored({"output": OPTIONS["output"], **given})}
    directory = _search(SearchConfig.from_flat(options), is_demo, console)
    if is_demo:
        export.run(build_parser().parse_args(["export", str(directory)]), console)


def _search(config: SearchConfig, is_demo: bool, console: Console) -> Path:
    """The directory of the run."""
    if not (config.study.output and is_run(Path(config.study.output))):  # else what differs from the run is told first
        check_inputs(config, needs_images=True)

    from search.driver.demo import with_dense_model
    from search.driver.launch import launch
    from search.report.verdict import verdicts
    from search.run.provenance import command_line
    from search.terminal.display import Display
    from search.terminal.quiet import quiet_optuna
    from search.terminal.tables import audit_view, front_table

    quiet_optuna()
    with Display(console) as display:
        if is_demo and not config.model.checkpoint:
            config = with_dense_model(config, display.stage)
        found = launch(config, display)
    console.print(front_table(found.summary))
    for sentence in verdicts(found.summary):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    for table in audit_view(found.audit) if config.study.audit and found.audit else ():
        console.print(table)
    print_path(console, f"report: {found.directory / 'report.html'}")
    if not is_demo:
        target = next(iter(config.study.target), "flops=50%")
        print_path(console, f"next: {command_line('export', found.directory, target=target)}")
    return found.directory


def _with_stored(given: dict[str, Any]) -> dict[str, Any]:
    """`given`, and below it the options of the run that is in its output directory."""
    output = given.get("output")
    return with_stored(Path(output), given) if isinstance(output, str) and output else given
