"""Command line: arguments -> SearchConfig -> search -> printed result. Wiring, no logic."""

import argparse
import os
import sys
import warnings
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait must not spin: trials often share their cores
# Read when Ray is imported: a lost worker is told of once, by a notice of the search.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed|The node with node id|Raylet is terminated")
warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)  # timm's, at import

import optuna  # noqa: E402
import torch  # noqa: E402
from rich.console import Console  # noqa: E402

from objectives.deploy.classify import Unread, classify  # noqa: E402
from objectives.deploy.compare_latency import measure  # noqa: E402
from objectives.deploy.formats import FormatConfig, named_formats  # noqa: E402
from objectives.runtime.device import name_of, resolve_device  # noqa: E402
from search import SearchConfig, audit, launch, open_run  # noqa: E402
from search.browse.optuna_dashboard import check_installed, serve_dashboard, snapshot  # noqa: E402
from search.browse.server import listen, serve  # noqa: E402
from search.config import read_options  # noqa: E402
from search.deploy.model_card import read_summary  # noqa: E402
from search.deploy.model_folder import ExportOptions  # noqa: E402
from search.deploy.points import wishes  # noqa: E402
from search.deploy.session import check_all, export_points  # noqa: E402
from search.driver import demo  # noqa: E402
from search.layout import LOCK  # noqa: E402
from search.masking import without_secrets  # noqa: E402
from search.report.comparison import opened  # noqa: E402
from search.run.model import model_of_run  # noqa: E402
from search.run.options import stored_config, with_stored  # noqa: E402
from search.run.places import check_exported, check_run, is_run  # noqa: E402
from search.run.provenance import command_line  # noqa: E402
from search.terminal.display import Display  # noqa: E402
from search.terminal.inspect_model import describe_model, inspect_profile  # noqa: E402
from search.terminal.parser import build_parser, given_options, training_options  # noqa: E402
from search.terminal.tables import (  # noqa: E402
    audit_view,
    export_table,
    front_table,
    fronts,
    latency_table,
)
from spaces.errors import CompressionError, printable, told  # noqa: E402

_INTERRUPTED = 130
_WIDTH = 130  # of output that goes to a file


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 on success, 2 for what the user can put right, 130 after Ctrl-C."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    console, problems = _console(), _console(stderr=True)
    arguments = argparse.Namespace()
    try:
        arguments = build_parser().parse_args(argv)
        status: int | None = _COMMANDS[arguments.command](arguments, console)
    except (CompressionError, OSError) as error:  # OSError: a full disk, no permission
        text = printable(without_secrets(told(error), getattr(arguments, "storage", None)))
        problems.print(f"error: {text}", style="red", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        text = "interrupted; finished trials are kept: the same command continues the run"
        problems.print(text, soft_wrap=True)
        return _INTERRUPTED
    return status or 0


def _console(stderr: bool = False) -> Console:
    """Prints names as they are: brackets in them are no markup, and colons no emoji."""
    width = None if stderr or sys.stdout.isatty() else _WIDTH
    return Console(stderr=stderr, width=width, markup=False, emoji=False)


def _launch(arguments: argparse.Namespace, console: Console) -> None:
    given = {**(read_options(Path(arguments.config)) if arguments.config else {}), **given_options(arguments)}
    options = _with_stored(given)
    is_demo = not any(options.get(name) for name in ("model", "checkpoint", "data_dir", "dataset"))
    if is_demo:
        options = {**demo.OPTIONS, **_with_stored({"output": demo.OPTIONS["output"], **given})}
    config = SearchConfig.from_flat(options)
    with Display(console) as display:
        if is_demo and not config.model.checkpoint:
            config = demo.with_dense_model(config, display.stage)
        run = launch(config, display)
    console.print(front_table(run.summary))
    for table in audit_view(run.audit) if config.study.audit and run.audit else ():
        console.print(table)
    console.print(f"report: {run.directory / 'report.html'}", highlight=False, soft_wrap=True)
    if is_demo:
        _export(build_parser().parse_args(["export", str(run.directory)]), console)
    else:
        target = next(iter(config.study.target), "flops=50%")
        console.print(f"next: {command_line('export', run.directory, target=target)}", highlight=False, soft_wrap=True)


def _with_stored(given: dict[str, Any]) -> dict[str, Any]:
    """`given`, and below it the options of the run that is in its output directory."""
    output = given.get("output")
    return with_stored(Path(output), given) if isinstance(output, str) and output else given


def _inspect(arguments: argparse.Namespace, console: Console) -> None:
    directory, given = Path(arguments.model), given_options(arguments)
    if directory.is_dir():  # else it is the name of a model
        check_run(directory)
    stored = stored_config(directory).flat() if is_run(directory) else {}
    if stored:
        given = {**stored, **given, "model": stored["model"], "output": arguments.model}
    config = model_of_run(SearchConfig.from_flat(given), directory if stored else None)
    with Display(console) as display:
        parts = list(inspect_profile(config, display) if arguments.profile else describe_model(config, display))
    for part in parts:
        console.print(part)


def _browse(arguments: argparse.Namespace, console: Console) -> None:
    directories = [Path(run) for run in arguments.runs]
    if arguments.text:
        for line in fronts(directories):
            console.print(line, soft_wrap=isinstance(line, str))
        return
    if arguments.dashboard:
        check_installed()
    if not any((directory / LOCK).exists() for directory in directories):  # a run that is being started has that alone
        opened(directories)
    studies = snapshot(directories, arguments.storage) if arguments.dashboard else None
    listener = listen(arguments.host, arguments.port)
    name = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    url = f"http://{name}:{listener.getsockname()[1]}/"
    what = f"{'a snapshot of ' if studies else ''}{', '.join(arguments.runs)}"
    console.print(f"{what} at {url} (Ctrl-C ends it)", highlight=False, soft_wrap=True)
    if not arguments.no_open:
        webbrowser.open(url)
    if studies is None:
        serve(directories, listener, arguments.host)
    else:
        serve_dashboard(studies, listener, arguments.host)


def _audit(arguments: argparse.Namespace, console: Console) -> None:
    run = open_run(arguments.run)
    with Display(console) as display:
        found = audit(run, arguments.points, arguments.factor, arguments.seeds, display.stage, display.notice)
    for table in audit_view(found):
        console.print(table)
    console.print(f"report: {run.directory / 'report.html'}", highlight=False, soft_wrap=True)


def _export(arguments: argparse.Namespace, console: Console) -> None:
    training, machines = training_options(arguments)
    options = ExportOptions(
        exact=arguments.exact,
        into=Path(arguments.output) if arguments.output else None,
        force=arguments.force,
        data_dir=arguments.data_dir,
        training=training,
        machines=machines,
        output=FormatConfig(format=tuple(arguments.format), dtype=arguments.dtype),
    )
    run = open_run(arguments.run)
    files = [Path(path) for path in arguments.allocation]
    wanted = wishes(run, arguments.target, arguments.trial, files, arguments.all_front)
    with Display(console) as display:
        exported = export_points(run, wanted, display.stage, options, display.notice)
    if len(exported) > 1:
        console.print(export_table(exported, run.summary.dense.costs))
        check_all(exported)
        return
    folder = exported[0].folder
    assert folder is not None
    console.print(str(folder), style="bold", highlight=False, soft_wrap=True)
    console.print(read_summary(folder))


def _measure(arguments: argparse.Namespace, console: Console) -> None:
    check_exported(Path(arguments.folder), "measure")
    device, threads = resolve_device(arguments.device), arguments.threads or torch.get_num_threads()
    formats = arguments.format and named_formats(arguments.format)
    with Display(console) as display:
        found = measure(
            Path(arguments.folder),
            device,
            arguments.batch_sizes,
            arguments.compile,
            arguments.seconds,
            threads,
            formats,
            display.stage,
        )
    console.print(latency_table(found, name_of(device), threads))


def _predict(arguments: argparse.Namespace, console: Console) -> int:
    def tell(text: str) -> None:
        problems.print(text, highlight=False, soft_wrap=True)

    check_exported(Path(arguments.folder), "predict")
    problems, unread = _console(stderr=True), 0
    for answer in classify(Path(arguments.folder), arguments.images, arguments.format, arguments.top, tell):
        if isinstance(answer, Unread):
            unread += 1
            tell(f"error: {answer.problem}")
        else:
            console.print(f"{printable(str(answer.image))}: {answer.text}", highlight=False, soft_wrap=True)
    return 2 if unread else 0


_COMMANDS: dict[str, Callable[[argparse.Namespace, Console], int | None]] = {
    "launch": _launch,
    "inspect": _inspect,
    "browse": _browse,
    "audit": _audit,
    "export": _export,
    "measure": _measure,
    "predict": _predict,
}

if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    sys.exit(main())
