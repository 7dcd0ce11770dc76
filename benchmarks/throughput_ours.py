"""The engine's side of benchmarks/throughput.py: `launch` through the public API, its functions watched by stage."""

import argparse
import importlib
import tempfile
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

from stages import Stages
from throughput_problems import Problem
from throughput_records import Log

from search import SearchConfig, launch
from search.driver.observer import Observer
from search.driver.outlook import Outlook
from search.run.summary import RunSummary
from search.trial import Trial

# Where the engine's time is spent: module, class, function, stage; and those whose results are made one after the other.
CALLS = (
    ("search.driver.session", "Session", "__init__", "preparation"),
    ("search.runners.in_process", "InProcessRunner", "forecast", "preparation"),
    ("objectives.evaluator", "Evaluator", "build", "building"),
    ("objectives.evaluator", "Evaluator", "as_built", "screening"),
    ("objectives.measures", None, "evaluate", "evaluation"),
    ("objectives.training.run_batches", None, "soft_labels", "teacher"),
    ("objectives.training.batch", None, "soft_labels", "teacher"),
    ("search.study.study", "Study", "ask", "proposing"),
    ("search.study.study", "Study", "choose", "proposing"),
    ("search.study.study", "Study", "tell", "recording"),
    ("search.driver.publisher", "Publisher", "ended", "recording"),
    ("search.driver.publisher", "Publisher", "waiting", "recording"),
)
ITERATORS = (
    ("objectives.evaluator", None, "finetune", "steps"),
    ("objectives.training.run_batches", "RunBatches", "training", "batches"),
    ("objectives.data.loaders", "Data", "training_pixels", "batches"),
)
BAND = 0.97  # of a budget, that all candidates are within


class Recorder(Observer):
    """Writes every trial when it is recorded, the dense reference too."""

    def __init__(self, log: Log, stages: Stages) -> None:
        self._log, self._stages, self._dense = log, stages, 1.0

    def began(self, directory: Path, summary: RunSummary, outlook: Outlook, steps: int) -> None:
        self._dense = summary.dense.costs["macs"]

    def ended(self, trial: Trial) -> None:
        score = trial.score
        if score is not None and score.error is not None:
            share = score.costs["macs"] / self._dense
            self._log.add(trial.proposal.number, share, score.error, self._stages.read())


def ours(problem: Problem, arguments: argparse.Namespace, log: Log, stages: Stages) -> None:
    """Search up to the number of trials that is wanted; under a limit, candidates of nearly as much alone, in a new run."""
    options = {**problem.options, "device": arguments.device, "seed": arguments.seed, "threads": arguments.threads}
    with ExitStack() as stack:
        if arguments.limit is None:
            options |= {"output": str(run_of(arguments)), "trials": arguments.trials, "baselines": ("none",)}
        else:  # two dense references come first
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            options |= {"output": str(Path(folder) / "run"), "trials": arguments.trials + 2, "baselines": ("none",)}
            options |= {"target": (f"flops={arguments.limit:g}%",), "band": BAND}
        watch(stages, stack)
        launch(SearchConfig.from_flat(options), Recorder(log, stages))


def run_of(arguments: argparse.Namespace) -> Path:
    """Run directory of a search; beside no other, whose factors it would take."""
    name = f"{arguments.data}-{arguments.steps}-{arguments.device.replace(':', '')}-{arguments.seed}"
    return Path(arguments.output) / "ours" / name / "run"


def watch(stages: Stages, stack: ExitStack) -> None:
    """Have the engine's functions tell their stages until the stack is closed."""
    for places, wrap in ((CALLS, stages.call), (ITERATORS, stages.iterator)):
        for module, owner, name, stage in places:
            found = importlib.import_module(module)
            target = found if owner is None else getattr(found, owner)
            stack.enter_context(patch.object(target, name, wrap(stage, getattr(target, name))))
