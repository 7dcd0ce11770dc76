"""Figures of one candidate."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Score:
    """Figures of one candidate; errors and divergences on the search split.

    Attributes:
        error: top-1 error after the short fine-tune, in [0, 1]; None where that was stopped at a rung.
        error_before: the same as built from the factors, before any training.
        kl, kl_before: mean KL divergence from the dense model after and before it, in nats; likewise.
        macs: multiply-accumulates for one image.
        params: parameters.
        latency: seconds of a call by the latency table of the search; None where there is none.
        steps: optimiser steps paid: those of the fine-tune, and those of a recipe before it.
        seconds: wall time of building, training and evaluating; not of an attempt that ran out of memory.
        parts: how many every batch was split in, so that the candidate fitted in memory.
        rungs: optimiser step -> top-1 error there, on at most `RUNG_IMAGES` images of the search split.
    """

    error: float | None
    error_before: float
    kl: float | None
    kl_before: float
    macs: int
    params: int
    steps: int
    seconds: float
    parts: int = 1
    latency: float | None = None
    rungs: Mapping[int, float] = field(default_factory=dict)
