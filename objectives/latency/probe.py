"""Measures a latency table: whole models in which all branches of a kind are cut to one size, timed beside the dense one.

A branch alone, called again and again, has its weights in the caches; within its model it has not. So what a size saves is
taken from whole models, and divided among the branches that were cut.
"""

import itertools
import math
import platform
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from objectives.cost.closed_form import CostModel
from objectives.latency.config import LatencyConfig
from objectives.latency.grid import Floats, Grid, points_of
from objectives.latency.samples import allocations
from objectives.latency.smoothing import smoothed
from objectives.latency.table import Check, LatencyTable
from objectives.latency.timing import forward, time_calls, wall_clock
from objectives.latency.token_probe import TokenProbe
from objectives.latency.units import Unit, units_of
from objectives.latency.variants import Variant, prefix_of, variant_of
from objectives.runtime.device import name_of
from objectives.runtime.progress import Progress
from spaces.allocation import Allocation
from spaces.sites import Space

_TOGETHER = 5  # models that are timed in turns with the dense one: no more than fit beside it in memory
_PASSES, _NOISE = 8, 0.01  # at most so many, until latencies as shares of the dense one are known so well
_PRIOR = 0.2  # a factor is taken to be within some 15 % of one where whole models are timed to 3 %


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
        self.fitted, self.checked = (allocations(space, costs, seed) for seed in (0, 1))
        self._progress, self._done, self._total = partial(progress, "latency"), 0, 0

    def table(self, fingerprint: str) -> LatencyTable:
        regimes = [(unit, regime) for unit in self.units for regime in unit.regimes if unit.axes(regime)]
        probes = [[self._cut(unit, sizes) for sizes in _cuts(unit, regime)[1]] for unit, regime in regimes]
        tokens = TokenProbe(self.space, self.units, prefix_of(self.model)) if self.space.tokens else None
        whole = [*itertools.chain(*probes), *self.fitted, *self.checked]
        kept, noise = self._measured([*map(Variant, whole), *(tokens.variants if tokens else ())])
        shares = iter(kept)
        grids: dict[Unit, dict[str, Grid]] = {unit: {} for unit in self.units}
        for (unit, regime), cut in zip(regimes, probes, strict=True):
            grids[unit][regime] = _grid(unit, regime, list(itertools.islice(shares, len(cut))), noise)
        table = LatencyTable(
            dense=float(np.median(self.seconds)),
            grids=tuple(grids.items()),
            tokens=tokens.times(kept[len(whole) :], noise) if tokens else None,
            checks=(),
            fingerprint=fingerprint,
            config=self.config,
            device=name_of(self.images.device),
            threads=self.threads,
            clock=self.clock,
            versions={"torch": torch.__version__, "python": platform.python_version()},
        )
        table = _scaled(table, _factors(table, self.space, self.fitted, list(itertools.islice(shares, len(self.fitted)))))
        checks = [
            Check(predicted=table.latency(self.space, allocation) / table.dense, measured=share)
            for allocation, share in zip(self.checked, shares, strict=False)
        ]
        return replace(table, checks=tuple(checks))

    def _cut(self, unit: Unit, sizes: dict[str, int]) -> Allocation:
        """All of a unit's branches at these sizes."""
        changed = {f"{branch}.{part}": size for branch in unit.branches for part, size in sizes.items()}
        return self.space.identity().replace(changed)

    def _measured(self, variants: Sequence[Variant]) -> tuple[list[float], float]:
        """Latencies of whole models as shares of the dense one's, and their standard error.

        In passes of random order, two at least, until the standard error is small: what disturbs one chunk falls on sizes that
        have nothing to do with each other, and the spread of the passes tells the noise.
        """
        rng, passes, noise = random.Random(0), list[Floats](), math.inf
        self._progress(0, 2 * len(variants))
        while len(passes) < 2 or (noise > _NOISE and len(passes) < _PASSES):
            self._total = max(2, len(passes) + 1) * len(variants)
            passes.append(self._pass(variants, rng.sample(range(len(variants)), len(variants))))
            if len(passes) > 1:
                noise = float(np.sqrt(np.var(passes, axis=0, ddof=1).mean() / len(passes)))
        self._progress(self._done, self._total)
        return np.mean(passes, axis=0).tolist(), noise

    def _pass(self, variants: Sequence[Variant], order: Sequence[int]) -> Floats:
        """All of them once, a chunk after another."""
        found = np.zeros(len(variants))
        for start in range(0, len(order), _TOGETHER):
            chunk = order[start : start + _TOGETHER]
            found[chunk] = self._timed([variants[index] for index in chunk])
            self._done += len(chunk)
            if self._done < self._total:  # else it depends on the noise whether there is another pass
                self._progress(self._done, self._total)
        return found

    def _timed(self, variants: Sequence[Variant]) -> list[float]:
        """As shares of the dense model, timed in turns with it."""
        models = {"dense": self.model, **{str(index): self._built(entry) for index, entry in enumerate(variants)}}
        calls = {name: forward(model, self.images, self.config.setting) for name, model in models.items()}
        timings = time_calls(calls, self.config.latency_seconds, self.threads, CLOCKS[self.clock])
        dense, *others = (timing.seconds for timing in timings.values())
        self.seconds.append(dense)
        return [seconds / dense for seconds in others]

    def _built(self, variant: Variant) -> nn.Module:
        return variant_of(self.model, self.space, variant, self.images.device)


def _cuts(unit: Unit, regime: str) -> tuple[list[bool], list[dict[str, int]]]:
    """Which points of a regime's grid cut anything, and the sizes at these."""
    sizes = [unit.sizes(regime, point) for point in points_of(unit.axes(regime))]
    cut = [not unit.is_dense(each) for each in sizes]
    return cut, list(itertools.compress(sizes, cut))


def _grid(unit: Unit, regime: str, kept: Sequence[float], noise: float) -> Grid:
    """What one of a unit's branches saves, from latencies with all of them cut."""
    axes, count = unit.axes(regime), len(unit.branches)
    cut = _cuts(unit, regime)[0]
    saved = np.zeros(len(cut))
    saved[cut] = (1 - np.array(kept)) / count
    return Grid(axes, smoothed(axes, saved.reshape([len(axis) for axis in axes.values()]), noise / count))


def _factors(table: LatencyTable, space: Space, allocations: Sequence[Allocation], kept: Sequence[float]) -> dict[str, float]:
    """Operator -> factor on what it saves, so that the sums fit the latencies of whole allocations.

    Least squares, drawn towards factors of one: what an operator hardly saves says nothing of its factor.
    """
    names = sorted({operator.name for rivals in space.branches.values() for operator in rivals})
    rows = np.zeros((len(allocations), len(names)))
    for row, allocation in zip(rows, allocations, strict=True):
        for _, operator in space.moved(allocation):
            saved = table.saved(space.schedule(allocation), operator, operator.sizes(allocation))
            row[names.index(operator.name)] += saved / table.dense
    rows = np.vstack([rows, _PRIOR * np.eye(len(names))])
    whole = np.array([table.whole(space.schedule(allocation)) / table.dense for allocation in allocations])
    from scipy.optimize import nnls  # half a second to import, and needed by few

    found, _ = nnls(rows, np.concatenate([whole - np.array(kept), np.full(len(names), _PRIOR)]))
    return dict(zip(names, found.tolist(), strict=True))


def _scaled(table: LatencyTable, factors: dict[str, float]) -> LatencyTable:
    grids = [
        (unit, {name: Grid(grid.axes, factors[unit.operator] * grid.saved) for name, grid in regimes.items()})
        for unit, regimes in table.grids
    ]
    return replace(table, grids=tuple(grids))
