"""inspect: what of a model can be made smaller, and what that costs."""

import argparse
from pathlib import Path

from rich.console import Console

from search.config import SearchConfig
from search.run.options import stored_config
from search.run.places import check_run, is_run
from search.terminal.inputs import check_inputs
from search.terminal.parser import given_options


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Describe a model, or measure its sensitivity profile."""
    directory, given = Path(arguments.model), given_options(arguments)
    if directory.is_dir():  # else it is the name of a model
        check_run(directory)
    stored = stored_config(directory).flat() if is_run(directory) else {}
    if stored:
        given = {**stored, **given, "model": stored["model"], "output": arguments.model}
    _inspect(SearchConfig.from_flat(given), directory if stored else None, arguments.profile, console)


def _inspect(config: SearchConfig, directory: Path | None, profile: bool, console: Console) -> None:
    check_inputs(config, needs_images=profile)

    from search.run.model import model_of_run
    from search.terminal.display import Display
    from search.terminal.inspect_model import describe_model, inspect_profile

    config = model_of_run(config, directory)
    with Display(console) as display:
        parts = list(inspect_profile(config, display) if profile else describe_model(config, display))
    for part in parts:
        console.print(part)
