"""Tables of latencies of ViT-S/16 at 224 pixels, how well they predict, and whether they hold for compiled models."""

import time
from collections.abc import Iterator, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch

from gpu.models import evaluator_of, pictures
from gpu.rows import Figures
from gpu.setting import Setting
from objectives.latency.config import Setting as How
from objectives.latency.timing import forward, time_calls
from spaces.models.create import input_size

_SHARES = (0.75, 0.5, 0.25)


def measure(unit: str, setting: Setting, known: Mapping[str, Figures]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A table as a search measures it, in mixed precision; or the shares of the dense model's
    latency that three cut models take: by the table, eager and compiled."""
    batch, kind = int(unit.split(",")[0].split()[1]), unit.split(", ")[1]
    options = {"latency_batch_size": batch, "latency_amp": True, "latency_seconds": 0.01 if setting.tiny else 0.05}
    name = f"latency-{batch}"
    config = pictures(setting, objectives="error,flops,latency", **options)
    dense = evaluator_of(config, setting, name).dense
    start = time.perf_counter()
    table = dense.latency
    assert table is not None
    seconds = time.perf_counter() - start
    if kind == "table":
        errors = [abs(check.error) for check in table.checks]
        yield "table", {
            "dense, ms": 1000 * table.dense, "seconds to measure": seconds, "allocations checked": len(errors),
            "median error": median(errors), "largest error": max(errors),
        }  # fmt: skip
        return
    hows = {name: How(batch_size=batch, amp=True, compiled=name == "compiled") for name in ("eager", "compiled")}
    images = torch.zeros(batch, *input_size(dense.model), device=dense.device)
    base = {name: forward(dense.teacher, images, how) for name, how in hows.items()}  # compiled once, at its first call
    for share in _SHARES:
        limits = {"macs": dense.costs.dense["macs"]}
        allocation = dense.space.decode(share, partial(dense.counted.load, limits=limits))
        cut = dense.factors.build(allocation).to(dense.device)
        found: dict[str, Any] = {"by the table": table.latency(dense.space, allocation) / table.dense}
        for name, how in hows.items():
            start = time.perf_counter()
            timings = time_calls({"cut": forward(cut, images, how), "dense": base[name]}, 1.0)
            found[name] = timings["cut"].seconds / timings["dense"].seconds
            found[f"dense {name}, ms"] = 1000 * timings["dense"].seconds
            found[f"{name}, seconds in all"] = time.perf_counter() - start
        yield f"{share:.0%} of the MACs", found
