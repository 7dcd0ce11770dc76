"""A run before its search: the first answer, and the files that a launch with these options, or with others, goes on from."""

from pathlib import Path

import torch

from objectives.dense_model import DenseModel, load_dense
from objectives.evaluator import Evaluator
from objectives.runtime.device import name_of
from search.config import SearchConfig
from search.driver.facts import facts_of
from search.driver.feasibility import Feasible, accepted, settle
from search.driver.first_answer import first_answer
from search.driver.observer import Observer
from search.driver.pace import Pace
from search.layout import CONFIG
from search.report.write import render
from search.run.continuation import check_same_run, is_new
from search.run.directory import default_output, lock_run, make_directory, remove_if_empty
from search.run.first_answer import FirstAnswer
from search.run.places import check_no_export
from search.run.provenance import environment
from search.run.run import Run
from search.run.summary import summarise
from search.run.tables import RunTables
from search.runners.base import Listener
from search.runners.in_process import InProcessRunner
from search.runners.job import needs_of
from spaces.errors import ConfigError


def preview(config: SearchConfig, observer: Observer) -> FirstAnswer:
    """Measure the first answer of a run in this process, or read it; a run that has begun keeps all its other files.

    Args:
        config: of the search that a launch would make.
        observer: told of what is read and done.

    Raises:
        CompressionError: what a launch would refuse, too; or there are no images to measure on.
    """
    directory = Path(config.study.output or default_output(config))
    if not config.data.profile_images:
        raise ConfigError("a first answer is measured on the images of the profile: give --profile-images above 0")
    check_no_export(directory)
    check_same_run(directory, config)
    if config.machines.threads is not None:
        torch.set_num_threads(config.machines.threads)
    make_directory(directory)
    with lock_run(directory):
        try:
            return _preview(config, directory, observer)
        except BaseException:
            remove_if_empty(directory)
            raise


def _preview(config: SearchConfig, directory: Path, observer: Observer) -> FirstAnswer:
    found: list[Feasible] = []

    def accept(dense: DenseModel) -> None:
        found.append(accepted(config, directory, dense, observer))

    study = config.study
    dense = load_dense(config.objective(directory), observer.stage, accept)
    runner = InProcessRunner(Evaluator(dense), Listener(stage=observer.stage))
    runner.prepare(needs_of(latency=study.times, factors=True, profile=study.measured_profile, frames=True, batches=False))
    feasible = found[0] if dense.latency is None else settle(study, dense, dense.costs)
    answer = first_answer(directory, study, dense, feasible, runner, observer.stage)
    if is_new(directory):
        _write_run(config, directory, dense, feasible)
    return answer


def _write_run(config: SearchConfig, directory: Path, dense: DenseModel, feasible: Feasible) -> None:
    """Write the run down as one without trials."""
    objectives = ("error", *config.study.minimised)
    facts = facts_of(config, dense, feasible.reach, feasible.targets, objectives, ())
    config.dump(directory / CONFIG)
    RunTables(directory).write([], summarise(facts, []))
    devices = [name_of(dense.device)]
    Pace(directory, config, devices).write(environment(devices))
    render(Run(directory))
