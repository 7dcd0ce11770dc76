"""Command line: arguments -> the command that they name -> printed result or error. Wiring, no logic."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable

from rich.console import Console

from search.masking import without_secrets
from search.terminal.commands import audit, browse, export, inspect, launch, measure, predict
from search.terminal.output import console_of
from search.terminal.parser import build_parser
from spaces.errors import CompressionError, printable, told

_INTERRUPTED = 130
_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait must not spin: trials often share their cores
    # Read when Ray is imported: a lost worker is told of once, by a notice of the search.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed|The node with node id|Raylet is terminated",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 on success, 2 for what the user can put right, 130 after Ctrl-C.

    What the commands need beyond the reading of their arguments is imported by them: an error in the arguments takes no second.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)  # timm's, at import
    console, problems = console_of(), console_of(stderr=True)
    arguments = argparse.Namespace()
    try:
        arguments = build_parser().parse_args(argv)
        status = _COMMANDS[arguments.command](arguments, console)
    except (CompressionError, OSError) as error:  # OSError: a full disk, no permission
        text = printable(without_secrets(told(error), getattr(arguments, "storage", None)))
        problems.print(f"error: {text}", style="red", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        text = "interrupted; finished trials are kept: the same command continues the run"
        problems.print(text, soft_wrap=True)
        return _INTERRUPTED
    return status or 0


_COMMANDS: dict[str, Callable[[argparse.Namespace, Console], int | None]] = {
    "launch": launch.run,
    "inspect": inspect.run,
    "browse": browse.run,
    "audit": audit.run,
    "export": export.run,
    "measure": measure.run,
    "predict": predict.run,
}

if __name__ == "__main__":
    sys.exit(main())
