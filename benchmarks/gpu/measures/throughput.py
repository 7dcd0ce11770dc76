"""Where the seconds of a trial go, and how many trials make an hour: ViT-S/16 at 224 pixels, one process."""

import itertools
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from statistics import mean, median
from typing import Any

import torch

from gpu.models import evaluator_of, pictures
from gpu.rows import Figures
from gpu.setting import Setting
from objectives.evaluator import Evaluator
from objectives.runtime.progress import Step
from spaces.allocation import Allocation

_TRIALS = 2


def measure(unit: str, setting: Setting, known: Mapping[str, Figures]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Trials of 100 steps of the candidate that keeps a share of the MACs. What a run pays for once comes first."""
    evaluator = evaluator_of(pictures(setting), setting, "pictures")
    dense, share = evaluator.dense, float(unit.split()[0]) / 100
    limits = {"macs": dense.costs.dense["macs"]}
    allocation = dense.space.decode(share, lambda allocation: dense.costs.load(allocation, limits))
    start = time.perf_counter()
    _ = dense.factors, dense.answers
    between = time.perf_counter()
    dense.keep_search()
    dense.keep_training(seed=0)
    once = {"factors": between - start, "batches and search images": time.perf_counter() - between}
    yield "once a run", {f"{name}, s": seconds for name, seconds in once.items()}
    for number in range(1 + _TRIALS):
        yield f"trial {number}", _timed(evaluator, allocation)


def _timed(evaluator: Evaluator, allocation: Allocation) -> dict[str, Any]:
    """Seconds of the stages of one trial, by the clock times of its steps; and how busy the GPU was."""
    steps: list[float] = []

    def on_step(step: Step) -> None:
        steps.append(time.perf_counter())

    with Busy(evaluator.dense.device) as busy:
        start, cpu = time.perf_counter(), time.process_time()
        model = evaluator.build(allocation).to(evaluator.dense.device)
        built = time.perf_counter() - start
        del model
        start = time.perf_counter()
        evaluator.evaluate(allocation, seed=0, on_step=on_step)
        end = time.perf_counter()
    between = [later - earlier for earlier, later in itertools.pairwise(steps)]
    batch, macs = evaluator.dense.objective.data.batch_size, evaluator.dense.costs.count(allocation, "macs")
    whole = evaluator.dense.costs.dense["macs"]
    typical = median(between)
    return {
        "seconds": end - start,
        "candidates an hour": 3600 / (end - start),
        "building": built,
        "before the first step's end": steps[0] - start,
        "the other steps": steps[-1] - steps[0],
        "after the last step": end - steps[-1],
        "ms a step, median": 1000 * typical,
        # forward and backward pass of the candidate, forward pass of the dense model; two operations a MAC
        "TFLOP/s in a step": 2 * batch * (3 * macs + whole) / typical / 1e12,
        "CPU seconds of this process": time.process_time() - cpu,
        "GPU busy": busy.share,
    }


class Busy:
    """The mean of what the driver calls the GPU's utilisation, while it lasts; "unknown" where it does not tell."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._seen, self._over = device, list[int](), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Busy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def share(self) -> str:
        """In per cent."""
        return f"{mean(self._seen):.0f} %" if self._seen else "unknown"

    def _watch(self) -> None:
        with suppress(Exception):  # no driver, or none of its library
            while not self._over.wait(0.1):
                self._seen.append(torch.cuda.utilization(self._device))
