"""export: points of a run as model folders."""

import argparse
from pathlib import Path

from rich.console import Console

from objectives.deploy.config import FormatConfig
from search.budgets.targets import parse_target
from search.run.places import check_is_run
from search.terminal.parser import training_options


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Export points, and say where they are."""
    training, machines = training_options(arguments)
    output = FormatConfig(format=tuple(arguments.format), dtype=arguments.dtype)
    for text in arguments.target:
        parse_target(text)
    check_is_run(Path(arguments.run))

    from search.deploy.model_card import read_summary
    from search.deploy.model_folder import ExportOptions
    from search.deploy.points import wishes
    from search.deploy.session import check_all, export_points
    from search.run.run import open_run
    from search.terminal.display import Display
    from search.terminal.quiet import quiet_optuna
    from search.terminal.tables import export_table

    quiet_optuna()
    options = ExportOptions(
        exact=arguments.exact,
        into=Path(arguments.output) if arguments.output else None,
        force=arguments.force,
        data_dir=arguments.data_dir,
        training=training,
        machines=machines,
        output=output,
        prefer=arguments.prefer,
    )
    opened = open_run(arguments.run)
    files = [Path(path) for path in arguments.allocation]
    wanted = wishes(
        opened, arguments.target, arguments.trial, files, arguments.all_front, arguments.predicted, arguments.prefer
    )
    with Display(console) as display:
        exported = export_points(opened, wanted, display.stage, options, display.notice)
    if len(exported) > 1:
        console.print(export_table(exported, opened.summary.dense.costs))
        check_all(exported)
        return
    folder = exported[0].folder
    assert folder is not None
    console.print(str(folder), style="bold", highlight=False, soft_wrap=True)
    console.print(read_summary(folder))
