"""Several processes that evaluate one candidate together, each on its own device: shares, and what they tell each other."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spaces.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Group:
    """One process's place among those that evaluate a candidate together.

    All processes run the same calls in the same order: `mean`, `total`, `agree` and every training step of a wrapped model wait
    for the others. Where one process raises and the others do not, they wait in vain until the timeout of `join_group`, or
    until it leaves; the group is then of no more use, and all must leave it and join another.

    Attributes:
        rank: of this process, from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ConfigError(f"rank must be from 0 to {self.size - 1} in a group of {self.size}, got {self.rank}")

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes, reports and decides."""
        return self.rank == 0

    def divide(self, batch: int) -> int:
        """Images of a batch for every process.

        Raises:
            ConfigError: it cannot be divided evenly.
        """
        share, rest = divmod(batch, self.size)
        if rest or not share:
            allowed = " or ".join(str(count * self.size) for count in (share, share + 1) if count)
            raise ConfigError(f"batch_size must be a multiple of the number of processes, {self.size}: {allowed}, got {batch}")
        return share

    def seed(self, seed: int) -> int:
        """Seed of what this process draws for itself; of the first one `seed`."""
        return seed + 1_000_003 * self.rank

    def wrap(self, model: nn.Module) -> nn.Module:
        """A model whose backward pass leaves the mean of all processes' gradients; the parameters are those of `model`.

        The first process's parameters and buffers are copied to the others. Nothing is wrapped in a group of one.
        """
        return model if self.size == 1 else share_gradients(model)

    def total(self, *values: float) -> list[float]:
        """The sum of each value over all processes, in float64; the same to the bit on all of them."""
        return list(values) if self.size == 1 else sum_over_processes(values)

    def mean(self, value: float) -> float:
        """The mean over all processes; NaN or infinite on all of them where it is on one."""
        return self.total(value)[0] / self.size

    def gathered(self, value: T) -> list[T]:
        """What every process has, in the order of their ranks; the same on all of them."""
        return [value] if self.size == 1 else gather_over_processes(value)

    def agree(self, flag: bool) -> bool:
        """The first process's decision, whatever the others would decide."""
        return self.total(flag and self.leads)[0] > 0


ALONE = Group()


def join_group(rank: int, size: int, address: str, port: int, device: torch.device, timeout: float = 600.0) -> Group:
    """Meet the other processes; returns when all have come. A process is in one group at a time.

    Numbers and decisions go between the CPUs (gloo), gradients of models on GPUs between these (NCCL).

    Args:
        rank: of this process, from 0.
        size: number of processes; nothing is set up for 1.
        address, port: where the first process listens; the port must be free there (`free_port`).
        device: of this process; cpu or cuda.
        timeout: seconds to wait for the others, here and whenever they are waited for: longer than anything that a process
            does alone, such as the first one's waiting for the answer at a rung. After that an error is raised; while
            gradients go between GPUs, NCCL ends the process instead.

    Raises:
        ConfigError: no such rank, or a device that gradients cannot be sent from.
    """
    group = Group(rank=rank, size=size)
    if size > 1:
        connect(rank, size, address, port, device, timeout)
    return group


def connect(rank: int, size: int, address: str, port: int, device: torch.device, timeout: float = 600.0) -> None:
    """Set up what `join_group` needs for more than one process; arguments and errors are its own."""
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"a candidate can be shared by processes on cpu or cuda devices, got {device.type!r}")
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    meeting, patience = f"tcp://{address}:{port}", timedelta(seconds=timeout)
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=size, timeout=patience)


def share_gradients(model: nn.Module) -> nn.Module:
    """`model` in a wrapper whose backward pass leaves the mean of all processes' gradients."""
    return DistributedDataParallel(model, static_graph=True)  # static: parameters without a gradient are allowed


def sum_over_processes(values: Sequence[float]) -> list[float]:
    """The sum of each value over all processes."""
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def gather_over_processes(value: T) -> list[T]:
    """What every process has, in the order of their ranks."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def leave_group() -> None:
    """Part from the other processes; those that still wait for this one get an error. Nothing happens outside of a group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def free_port() -> int:
    """A port that nobody listens on at this machine. Another program may take it before it is used: then choose again."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
    return port
