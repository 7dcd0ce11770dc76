"""inspect: what of a model can be made smaller, and what that costs."""

import argparse
import shlex
from pathlib import Path

from rich.console import Console

from search.config import SearchConfig
from search.run.options import stored_config
from search.run.places import check_run, is_run
from search.terminal.inputs import check_inputs
from search.terminal.output import print_path
from search.terminal.parser import given_options


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Describe a model, or measure its sensitivity profile or its first answer."""
    directory, given = Path(arguments.model), given_options(arguments)
    if directory.is_dir():  # else it is the name of a model
        check_run(directory)
    stored = stored_config(directory).flat() if is_run(directory) else {}
    if stored:
        given = {**stored, **given, "model": stored["model"], "output": arguments.model}
    config = SearchConfig.from_flat(given)
    check_inputs(config, needs_images=arguments.profile or arguments.front)
    if arguments.front:
        _front(config, directory if stored else None, console)
    else:
        _inspect(config, directory if stored else None, arguments.profile, console)


def _inspect(config: SearchConfig, directory: Path | None, profile: bool, console: Console) -> None:

    from search.run.model import model_of_run
    from search.terminal.display import Display
    from search.terminal.inspect_model import describe_model, inspect_profile

    config = model_of_run(config, directory)
    with Display(console) as display:
        parts = list(inspect_profile(config, display) if profile else describe_model(config, display))
    for part in parts:
        console.print(part)


def _front(config: SearchConfig, directory: Path | None, console: Console) -> None:
    from search.driver.preview import preview
    from search.run.directory import default_output
    from search.run.model import model_of_run
    from search.run.provenance import command_line
    from search.terminal.display import Display
    from search.terminal.first_tables import first_tables

    config = model_of_run(config, directory)
    with Display(console) as display:
        answer = preview(config, display)
    for table in first_tables(answer):
        console.print(table)
    output = Path(config.study.output or default_output(config))
    target = next(iter(config.study.target), "flops=50%")
    launch = shlex.join(["python", "run_search.py", "launch", "--output", str(output), "--target", target])
    print_path(console, f"report: {output / 'report.html'}")
    print_path(console, f"next: {launch}")
    print_path(console, f"as built: {command_line('export', output, target=target, predicted=True)}")
