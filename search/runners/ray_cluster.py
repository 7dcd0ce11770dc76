"""Ray: started here or joined, and the processes of one worker in it."""

import logging
import os
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from objectives.runtime.distributed import free_port
from search.runners.resources import MachineConfig, Plan, plan_workers
from spaces.errors import RunError
from spaces.scratch import Scratch

_LAST_LINES = 60
_REACH_SECONDS = 10.0
_OBJECT_STORE = 128 << 20  # what passes through it are events: some hundred bytes each
_LONGEST = 26  # characters of the folder that Ray's is in: paths of sockets have 107 at most, and Ray's own part is 81


class Connection:
    """This process in Ray: one that it starts on this machine, a cluster that it joins, or the Ray that it is in already.

    Args:
        config: which machines.

    Attributes:
        plan: the workers that there is room for.
        scratch: where the Ray that was started here keeps its files; None where one was joined.

    Raises:
        RunError: Ray cannot be started or reached.
        ConfigError: more was asked for than there is.
    """

    def __init__(self, config: MachineConfig) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self._opens = not ray.is_initialized()
        self.scratch: Scratch | None = None
        try:
            self.plan = self._started(config) if self._opens and config.ray_address is None else self._joined(config)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End what was started here, with all that it has written, or leave what was joined."""
        if self._opens:
            ray.shutdown()
        if self.scratch is not None:
            self.scratch.close()

    def _started(self, config: MachineConfig) -> Plan:
        there = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
        plan = plan_workers(config, there)
        self.scratch = Scratch(scratch_parent())
        # CPUs here are a name for room: a search of more workers than cores is slow, not refused.
        cpus = max(int(there["CPU"]), plan.workers * plan.processes)
        # By its name: without one, Ray joins whatever cluster was last started on this machine, or stands in RAY_ADDRESS.
        own = {"address": "local", "include_dashboard": False, "object_store_memory": _OBJECT_STORE, "num_cpus": cpus}
        # By default workers run at 15 more than who starts them, and whatever else there is goes before.
        system, folder = {"worker_niceness": 0}, str(self.scratch.path)  # a dictionary for each: Ray writes into it
        _init("Ray cannot be started", num_gpus=int(there["GPU"]), _temp_dir=folder, _system_config=system, **own)
        return plan

    def _joined(self, config: MachineConfig) -> Plan:
        if self._opens:
            assert config.ray_address is not None
            check_reachable(config.ray_address)
            _init(f"the cluster at {config.ray_address} cannot be reached", address=config.ray_address)
        return plan_workers(config, ray.cluster_resources())  # type: ignore[no-untyped-call]


def scratch_parent() -> Path:
    """Where a Ray that is started here keeps its files: the system's temporary folder, or one of a shorter name."""
    wanted = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    return wanted if len(str(wanted)) <= _LONGEST else Path("/tmp")


def check_reachable(address: str) -> None:
    """Raise unless something listens there: Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    if address == "auto" or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), _REACH_SECONDS).close()
    except OSError as error:
        raise RunError(f"the cluster at {address} cannot be reached: {error.strerror or error}") from error


def _init(trouble: str, **options: Any) -> None:
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:  # of its own kinds, of Python's, and plain ones: a machine that is too slow for it
        raise RunError(f"{trouble}: {' '.join(str(error).split())[:300]}") from error


def check_alive() -> None:
    """Raise where Ray's own process on this machine is gone: no worker could be started or heard any more.

    Ray itself takes about 20 seconds to find that out, and then lets its caller wait for ever.
    """
    here = ray.get_runtime_context().get_node_id()
    if not any(node["Alive"] for node in ray.nodes() if node["NodeID"] == here):  # type: ignore[no-untyped-call]
        raise RunError("Ray's own process on this machine (raylet) was lost: the same command continues the run")


class Team:
    """The processes of one worker: actors of one class, close to each other where there are several.

    Args:
        kind: class of the actors.
        plan: what each of them gets.
        arguments: of the class.
    """

    def __init__(self, kind: type[Any], plan: Plan, *arguments: Any) -> None:
        self._bundles: PlacementGroup | None = None
        if plan.processes > 1:  # all or none of them are given room
            self._bundles = placement_group([{"CPU": 1, "GPU": plan.gpus}] * plan.processes, strategy="PACK")
        places = [
            "SPREAD" if self._bundles is None else PlacementGroupSchedulingStrategy(self._bundles, index)
            for index in range(plan.processes)
        ]
        actor = ray.remote(kind)
        self.actors = [actor.options(scheduling_strategy=each, **_options(plan)).remote(*arguments) for each in places]

    @property
    def first(self) -> Any:
        """The actor that leads the others."""
        return self.actors[0]

    def meeting_point(self) -> tuple[str, int]:
        """Address and free port of the first process, where the others can find it.

        Raises:
            RayError: it is lost.
        """
        call = self.first.__ray_call__.remote(lambda worker: (ray.util.get_node_ip_address(), free_port()))  # type: ignore[no-untyped-call]
        address, port = ray.get(call)
        return address, port

    def kill(self) -> None:
        """End all of them at once."""
        for actor in self.actors:
            with suppress(RayError):
                ray.kill(actor, no_restart=True)
        if self._bundles is not None:
            with suppress(RayError):
                remove_placement_group(self._bundles)


def _options(plan: Plan) -> dict[str, Any]:
    """A second thread answers at rungs while the first one runs a job. A worker that is lost is replaced here, not by Ray."""
    return {
        "num_cpus": 1,
        "num_gpus": plan.gpus,
        "max_concurrency": 2,
        "max_restarts": 0,
        "max_task_retries": 0,
        "runtime_env": {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(plan.threads)}},
    }


def first_sentence(error: BaseException) -> str:
    """What Ray says, without its guesses at the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = (lines or [type(error).__name__])[-1].rpartition("Worker exit detail: ")[2]
    return text.partition(" Some common causes")[0][:300]


def last_lines(path: str) -> str:
    """What a process wrote to its stderr last; nothing where the file is on another host."""
    if not Path(path).is_file():
        return ""
    return "\n".join(Path(path).read_text(errors="replace").splitlines()[-_LAST_LINES:])
