"""Which machines run the trials: the options, and how many workers of what size follow from them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from spaces.errors import ConfigError

# Options that say together where trials run: each of them means something else beside others.
PLACEMENT = frozenset(("runner", "parallel", "gpus", "workers_per_gpu", "gpus_per_trial", "ray_address"))

# Options of one launch, which say nothing of the next one.
ONE_LAUNCH = frozenset(("max_hours",))


@dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """Where trials run, and how much of it they may use.

    Attributes:
        runner: in-process (one trial at a time), ray (workers that stay warm, on this machine or a cluster), or tune (the same
            search inside Ray Tune); auto takes ray where more than one trial at a time, GPUs or a cluster is asked for.
        parallel: trials at once; by default one per GPU, or one where there is none.
        gpus: GPUs to use, in all; by default all there are. 0 for the CPUs alone.
        workers_per_gpu: trials that share a GPU; its memory is not divided for them.
        gpus_per_trial: GPUs (or CPU processes, without GPUs) that fine-tune one candidate together.
        ray_address: of a running Ray cluster: auto, or host:port; the run directory, the images and the checkpoint must have
            the same paths on all its nodes.
        device: cpu, cuda, cuda:1, mps; auto takes a GPU if there is one.
        threads: CPU threads of a trial; by default its share of the cores. Small models are faster with 1.
        max_hours: no trial is started that would not be done after so many hours of this launch, and of no later one.
        trial_timeout: seconds after which a trial is taken to hang; by default ten times the forecast.
        disk_limit: GB of weights of the front that are kept; those beyond are made again when they are exported.
        cache: GB in the run directory for what all trials read: training batches, the dense model's outputs on them, and the
            search images. What has no room is made anew by every trial. It is removed when the search is done. By default a
            quarter of the free disk, and half of the memory at most; 0 keeps nothing.
    """

    runner: Literal["auto", "in-process", "ray", "tune"] = "auto"
    parallel: int | None = None
    gpus: int | None = None
    workers_per_gpu: int = 1
    gpus_per_trial: int = 1
    ray_address: str | None = None
    device: str = "auto"
    threads: int | None = None
    max_hours: float | None = None
    trial_timeout: float | None = None
    disk_limit: float | None = None
    cache: float | None = None

    def __post_init__(self) -> None:
        for name in ("parallel", "workers_per_gpu", "gpus_per_trial", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.gpus is not None and self.gpus < 0:
            raise ConfigError(f"gpus must be at least 0, got {self.gpus}")
        for name in ("max_hours", "trial_timeout", "disk_limit"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} must be positive, got {value}")
        if self.cache is not None and not 0 <= self.cache < math.inf:
            raise ConfigError(f"cache must be at least 0, got {self.cache}")
        if self.workers_per_gpu > 1 and self.gpus_per_trial > 1:
            raise ConfigError("workers_per_gpu and gpus_per_trial exclude each other: a trial shares a GPU or has several")
        if self.runner == "in-process" and self.distributed:
            raise ConfigError("runner in-process runs one trial on one device: leave it out, or choose --runner ray")
        if self.ray_address is not None and self.ray_address.startswith("ray://"):
            raise ConfigError(f"ray_address must be auto or host:port, got {self.ray_address}: launch on a node")
        if self.runner == "tune" and self.gpus_per_trial > 1:
            raise ConfigError("gpus_per_trial needs --runner ray")

    @property
    def distributed(self) -> bool:
        """Whether an option asks for more than one process can do."""
        more = (self.parallel or 1) > 1 or self.workers_per_gpu > 1 or self.gpus_per_trial > 1
        return more or self.gpus is not None or self.ray_address is not None

    @property
    def chosen_runner(self) -> Literal["in-process", "ray", "tune"]:
        """The runner, where auto has been resolved."""
        if self.runner != "auto":
            return self.runner
        return "ray" if self.distributed else "in-process"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Workers of one search.

    Attributes:
        workers: trials at once.
        processes: of one worker, each with its own device.
        gpus: of one process; a fraction where several share one, 0 on CPUs.
        threads: CPU threads of one process.
        device: of one process, as `Objective.device`.
    """

    workers: int
    processes: int
    gpus: float
    threads: int
    device: str


def plan_workers(config: MachineConfig, resources: Mapping[str, float]) -> Plan:
    """How many workers of what size.

    Args:
        config: what was asked for.
        resources: what there is: "CPU" and, where there are some, "GPU", as Ray counts them.

    Raises:
        ConfigError: more was asked for than there is.
    """
    cpus, there = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    if config.gpus is not None and config.gpus > there:
        raise ConfigError(f"--gpus {config.gpus} was asked for, but there are {there}")
    on_cpu = config.device not in ("auto", "cuda") or config.gpus == 0 or there == 0
    if config.device.startswith("cuda") and on_cpu:
        raise ConfigError(
            f"device {config.device!r} cannot be had: of {there} GPUs, Ray gives each worker its own (--device cuda)"
        )
    gpus = 0 if on_cpu else config.gpus or there
    most = gpus * config.workers_per_gpu // config.gpus_per_trial if gpus else max(1, cpus // config.gpus_per_trial)
    workers = config.parallel or (most if gpus else 1)
    if gpus and workers > most:
        raise ConfigError(
            f"{workers} trials at once do not fit on {gpus} GPUs with {config.workers_per_gpu} workers on each and "
            f"{config.gpus_per_trial} GPUs for a trial: at most {most} do"
        )
    if gpus and most == 0:
        raise ConfigError(f"gpus_per_trial is {config.gpus_per_trial}, but there are {gpus} GPUs")
    return Plan(
        workers=workers,
        processes=config.gpus_per_trial,
        gpus=1 / config.workers_per_gpu if gpus else 0,
        threads=config.threads or max(1, cpus // (workers * config.gpus_per_trial)),
        device="cuda" if gpus else "cpu" if config.device == "auto" else config.device,
    )
