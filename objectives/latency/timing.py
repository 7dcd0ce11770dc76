"""How long a call takes: warmed up, synchronised, in inference mode, beside the calls that it is compared with.

A time says something of the device, the threads, the precision and the batch that it was measured with, and of nothing else.
Calls are timed in turns, round after round, so that what else the machine does falls on all of them; ratios are taken within
rounds. Timed by torch.utils.benchmark.
"""

import logging
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from time import monotonic
from types import ModuleType

import torch
from torch import Tensor, nn

from objectives.latency.config import Setting
from objectives.runtime.device import half_type

Call = Callable[[], object]

_SHORTEST = 0.002  # seconds of one round of one call: the clock and the loop are then below 0.1 %
_FEWEST, _MOST = 9, 1000  # rounds


@cache
def _benchmark() -> ModuleType:
    """PyTorch's timers, which few processes need.

    Importing them looks for a compiler of CUDA, and says so where there is one without a GPU: nothing to do with timing.
    """
    building = logging.getLogger("torch.utils.cpp_extension")
    level = building.level
    building.setLevel(logging.ERROR)
    import torch.utils.benchmark

    building.setLevel(level)
    return torch.utils.benchmark


def wall_clock() -> float:
    """Seconds; waits for a GPU before it looks."""
    seconds: float = _benchmark().utils.timer.timer()
    return seconds


@dataclass(frozen=True)
class Timing:
    """What was measured of one call.

    Attributes:
        rounds: seconds a call took, mean within each round; rounds of the calls that were timed together belong to each other.
    """

    rounds: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the rounds, in seconds; the median for fewer than two."""
        if len(self.rounds) < 2:
            return self.seconds, self.seconds
        low, _, high = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return low, high

    def ratio(self, other: "Timing") -> "Timing":
        """Time over that of another call of the same rounds, round by round."""
        return Timing(tuple(own / its for own, its in zip(self.rounds, other.rounds, strict=True)))


def time_calls(
    calls: Mapping[str, Call], seconds: float = 1.0, threads: int | None = None, clock: Callable[[], float] = wall_clock
) -> dict[str, Timing]:
    """Time several calls in turns.

    Args:
        calls: name -> what is timed; run in inference mode. Work that it starts on a GPU is waited for.
        seconds: to spend on each call; at least nine rounds are measured, however long they take.
        threads: of torch on the CPU, while it is measured; by default as they are.
        clock: seconds since any moment; by default wall time, after work on a GPU is done.
    """
    threads, timer_of = threads or torch.get_num_threads(), _benchmark().Timer
    timers = {
        name: timer_of("call()", globals={"call": call}, timer=clock, num_threads=threads) for name, call in calls.items()
    }
    with torch.inference_mode():
        # What is compiled, allocated or tuned at a first call is paid for in the first of these.
        once = {name: [timer.timeit(1).median for _ in range(3)][-1] for name, timer in timers.items()}
        numbers = {name: max(1, round(_SHORTEST / taken)) for name, taken in once.items()}
        rounds: list[dict[str, float]] = []
        end = monotonic() + seconds * len(calls)
        while len(rounds) < _FEWEST or (monotonic() < end and len(rounds) < _MOST):
            rounds.append({name: timer.timeit(numbers[name]).median for name, timer in timers.items()})
    return {name: Timing(tuple(entry[name] for entry in rounds)) for name in calls}


def forward(model: nn.Module, images: Tensor, setting: Setting) -> Call:
    """A forward pass of `model`, which is put in evaluation mode, on these images of its device.

    Args:
        model: images [B, C, H, W] -> anything.
        images: a batch of `setting.batch_size`.
        setting: how to run it.
    """
    model = model.eval()
    run = torch.compile(model, dynamic=False) if setting.compiled else model

    def call() -> object:
        with torch.autocast(images.device.type, half_type(images.device), enabled=setting.amp):
            return run(images)

    return call
