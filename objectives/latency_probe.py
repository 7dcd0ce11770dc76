"""Measures a latency table: whole models in which all branches of a kind are cut to one size, timed beside the dense one.

A branch alone, called again and again, has its weights in the caches; within its model it has not. So what a size saves is
taken from whole models, and divided among the branches that were cut.
"""

import copy
import itertools
import platform
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.utils.benchmark.utils.timer import timer as wall_clock

from objectives.cost import CostModel
from objectives.device import name_of
from objectives.latency import forward, time_calls
from objectives.latency_table import Check, Grid, LatencyConfig, LatencyTable, points_of, smoothed
from objectives.latency_units import Unit, units_of
from objectives.progress import Progress
from spaces.allocation import Allocation
from spaces.sites import Space
from spaces.vit import resize

_TOGETHER = 5  # models that are timed in turns with the dense one: no more than fit beside it in memory
_LOADS = (0.3, 0.5, 0.7, 0.9)  # of the way from the fewest MACs to all of them, of whole allocations
_PRIOR = 0.2  # a factor is taken to be within some 15 % of one where whole models are timed to 3 %
_SPREAD = 1.0  # of the proportions of random ones, in log-odds


def measure_latency(
    model: nn.Module,
    space: Space,
    costs: CostModel,
    images: Tensor,
    config: LatencyConfig,
    fingerprint: str,
    progress: Progress = lambda what, done, total: None,
) -> LatencyTable:
    """Measure what every size of a space saves of the dense model's latency.

    Every unit is measured alone at some of its sizes. A factor per operator, near one, then fits their sums to whole
    allocations; others are kept aside to check the table with.

    Args:
        model: the dense one, on the device to measure on.
        space: of it.
        costs: MACs and parameters.
        images: a batch of it on the device, [config.latency_batch_size, C, H, W]; what they show does not matter.
        config: how to measure.
        fingerprint: of the model and the space.
        progress: called with (what, done, in all).
    """
    return _Measurement(model, space, costs, images, config, progress).table(fingerprint)


def share_of_latency(model: nn.Module, dense: nn.Module, images: Tensor, config: LatencyConfig) -> float:
    """Latency of a model as a share of another's, on the device of the images."""
    model = model.to(images.device)
    calls = {"model": forward(model, images, config.setting), "dense": forward(dense, images, config.setting)}
    threads = torch.get_num_threads()
    timings = time_calls(calls, config.latency_seconds, threads, CLOCKS[clock_of(images.device, threads)])
    return timings["model"].seconds / timings["dense"].seconds


def clock_of(device: torch.device, threads: int) -> str:
    """What to measure with: the CPU time of the calling thread where it is the only one, else wall time.

    They are the same on a machine that does nothing else; where it does, the former leaves that out.
    """
    return "cpu" if device.type == "cpu" and threads == 1 else "wall"


CLOCKS = {"cpu": time.thread_time, "wall": wall_clock}


class _Measurement:
    """The measurement of one table."""

    def __init__(
        self,
        model: nn.Module,
        space: Space,
        costs: CostModel,
        images: Tensor,
        config: LatencyConfig,
        progress: Progress,
    ) -> None:
        self.model, self.space, self.costs, self.images, self.config = model, space, costs, images, config
        self.threads = torch.get_num_threads()
        self.clock = clock_of(images.device, self.threads)
        self.units = units_of(model, space, costs)
        self.seconds: list[float] = []  # of the dense model
        self.fitted, self.checked = (_allocations(space, costs, seed) for seed in (0, 1))
        probes = sum(len(_cuts(unit, regime)[1]) for unit in self.units for regime in unit.regimes)
        self._progress = partial(progress, "latency")
        self._done, self._total = 0, probes + len(self.fitted) + len(self.checked)

    def table(self, fingerprint: str) -> LatencyTable:
        grids = [(unit, {name: self._grid(unit, name) for name in unit.regimes if unit.axes(name)}) for unit in self.units]
        kept = self._kept(self.fitted + self.checked)
        table = LatencyTable(
            dense=float(np.median(self.seconds)),
            grids=tuple(grids),
            checks=(),
            fingerprint=fingerprint,
            config=self.config,
            device=name_of(self.images.device),
            threads=self.threads,
            clock=self.clock,
            versions={"torch": torch.__version__, "python": platform.python_version()},
        )
        table = _scaled(table, _factors(table, self.space, self.fitted, kept[: len(self.fitted)]))
        checks = [
            Check(predicted=table.latency(self.space, allocation) / table.dense, measured=share)
            for allocation, share in zip(self.checked, kept[len(self.fitted) :], strict=True)
        ]
        return replace(table, checks=tuple(checks))

    def _grid(self, unit: Unit, regime: str) -> Grid:
        """What one of a unit's branches saves."""
        axes = unit.axes(regime)
        cut, sizes = _cuts(unit, regime)
        kept = np.ones(len(cut))
        kept[cut] = self._kept([self._cut(unit, each) for each in sizes])
        saved = (1 - kept) / len(unit.branches)
        return Grid(axes, smoothed(saved.reshape([len(axis) for axis in axes.values()])))

    def _cut(self, unit: Unit, sizes: dict[str, int]) -> Allocation:
        """All of a unit's branches at these sizes."""
        changed = {f"{branch}.{part}": size for branch in unit.branches for part, size in sizes.items()}
        return self.space.identity().replace(changed)

    def _kept(self, allocations: Sequence[Allocation]) -> list[float]:
        """Latencies of whole models as shares of the dense one's."""
        kept = []
        for chunk in _chunks(allocations):
            models = {"dense": self.model, **{str(index): self._variant(entry) for index, entry in enumerate(chunk)}}
            calls = {name: forward(model, self.images, self.config.setting) for name, model in models.items()}
            timings = time_calls(calls, self.config.latency_seconds, self.threads, CLOCKS[self.clock])
            dense, *others = (timing.seconds for timing in timings.values())
            self.seconds.append(dense)
            kept += [seconds / dense for seconds in others]
            self._done += len(chunk)
            self._progress(self._done, self._total)
        return kept

    def _variant(self, allocation: Allocation) -> nn.Module:
        """The dense model cut to an allocation, with its own weights where nothing is cut, and random ones elsewhere."""
        given = {id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())}
        model = copy.deepcopy(self.model, dict(given))
        resize(model, self.space, allocation)
        model.to(self.images.device)
        with torch.no_grad():
            for parameter in model.parameters():
                if id(parameter) not in given:  # uninitialised memory may hold numbers that a CPU is slow with
                    parameter.normal_(std=0.02)
        return model


def _cuts(unit: Unit, regime: str) -> tuple[list[bool], list[dict[str, int]]]:
    """Which points of a regime's grid cut anything, and the sizes at these."""
    sizes = [unit.sizes(regime, point) for point in points_of(unit.axes(regime))]
    cut = [not unit.is_dense(each) for each in sizes]
    return cut, list(itertools.compress(sizes, cut))


def _chunks(allocations: Sequence[Allocation]) -> Iterator[Sequence[Allocation]]:
    yield from (allocations[start : start + _TOGETHER] for start in range(0, len(allocations), _TOGETHER))


def _allocations(space: Space, costs: CostModel, seed: int) -> list[Allocation]:
    """Whole allocations at several loads: with the same share everywhere, and with random proportions and operators."""
    rng = random.Random(seed)
    load = partial(costs.load, limits={"macs": costs.dense["macs"]})
    least = load(space.smallest(load))
    found = []
    for share in _LOADS:
        limit = least + (share - 0.1 * seed) * (1 - least)
        operators = {branch: rng.choice(rivals).name for branch, rivals in space.branches.items()}
        offsets = {site.name: rng.gauss(0, _SPREAD) for site in space.sites}
        found += [space.decode(limit, load), space.decode(limit, load, operators, offsets)]
    return found


def _factors(table: LatencyTable, space: Space, allocations: Sequence[Allocation], kept: Sequence[float]) -> dict[str, float]:
    """Operator -> factor on what it saves, so that the sums fit the latencies of whole allocations.

    Least squares, drawn towards factors of one: what an operator hardly saves says nothing of its factor.
    """
    names = sorted({operator.name for rivals in space.branches.values() for operator in rivals})
    rows = np.zeros((len(allocations), len(names)))
    for row, allocation in zip(rows, allocations, strict=True):
        for rivals in space.branches.values():
            for operator in rivals:
                if operator.moves(allocation):
                    row[names.index(operator.name)] += table.saved(operator, operator.sizes(allocation)) / table.dense
    rows = np.vstack([rows, _PRIOR * np.eye(len(names))])
    found, _ = nnls(rows, np.concatenate([1 - np.array(kept), np.full(len(names), _PRIOR)]))
    return dict(zip(names, found.tolist(), strict=True))


def _scaled(table: LatencyTable, factors: dict[str, float]) -> LatencyTable:
    grids = [
        (unit, {name: Grid(grid.axes, factors[unit.operator] * grid.saved) for name, grid in regimes.items()})
        for unit, regimes in table.grids
    ]
    return replace(table, grids=tuple(grids))
