"""measure: an exported model timed beside the dense one."""

import argparse
from pathlib import Path

from rich.console import Console

from objectives.deploy.config import named_formats
from objectives.latency.config import Setting
from search.run.places import check_exported
from spaces.folder.description import read_description


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Time the model of a folder, and print the figures."""
    folder = Path(arguments.folder)
    check_exported(folder, "measure")
    formats = arguments.format and named_formats(arguments.format)
    for size in arguments.batch_sizes:
        Setting(batch_size=size)
    read_description(folder)  # a damaged folder is told before anything is imported that runs models

    import torch

    from objectives.deploy.compare_latency import measure, rows_of
    from objectives.runtime.device import name_of, resolve_device
    from search.terminal.display import Display
    from search.terminal.tables import latency_table

    device, threads = resolve_device(arguments.device), arguments.threads or torch.get_num_threads()
    with Display(console) as display:
        found = measure(
            folder, device, arguments.batch_sizes, arguments.compile, arguments.seconds, threads, formats, display.stage
        )
    console.print(latency_table(rows_of(found), name_of(device), threads))
