"""Which runner a search gets: the one place that chooses among them."""

from objectives.evaluator import Evaluator
from objectives.objective import Objective
from search.runners.base import Listener, Runner
from search.runners.in_process import InProcessRunner
from search.runners.resources import MachineConfig
from spaces.errors import ConfigError, first_line


def create_runner(machines: MachineConfig, objective: Objective, evaluator: Evaluator, listener: Listener) -> Runner:
    """The runner that the options ask for.

    Ray and Tune are imported here, since importing them takes seconds that a search in this process need not wait for.

    Args:
        machines: with the name of the runner.
        objective: what the workers evaluate by.
        evaluator: of this process: trials run on it where no worker has one.
        listener: what the runner tells.

    Raises:
        ConfigError: more was asked for than there is, or the runner is not installed.
        RunError: Ray cannot be started, or the cluster cannot be reached.
    """
    if machines.chosen_runner == "in-process":
        return InProcessRunner(evaluator, listener)
    if machines.chosen_runner == "tune":
        return _tune_runner(machines, objective, evaluator, listener)
    from search.runners.ray_actors import RayRunner

    return RayRunner(objective, machines, listener)


def _tune_runner(machines: MachineConfig, objective: Objective, evaluator: Evaluator, listener: Listener) -> Runner:
    try:
        from search.runners.tune import TuneRunner
    except ImportError as error:
        raise ConfigError(f"--runner tune: {first_line(error)}: pip install 'vit-compression-search[tune]'") from error
    return TuneRunner(objective, evaluator, machines, listener)
