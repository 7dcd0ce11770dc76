"""Figures of one candidate."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from objectives.cost.spec import COSTS, Cost


@dataclass(frozen=True, kw_only=True)
class Score:
    """Figures of one candidate; errors and divergences on the search split, those as built on `Objective.split_before`.

    Attributes:
        error: top-1 error after the short fine-tune, in [0, 1]; None where that was stopped at a rung.
        error_before: top-1 error as built from the factors, before any training.
        kl, kl_before: mean KL divergence from the dense model after and before it, in nats; likewise.
        cross_entropy: mean cross-entropy of the labels after the fine-tune, in nats; likewise.
        costs: cost -> figure, in the cost's unit; those that the search knows.
        steps: optimiser steps paid: those of the fine-tune, and those of a recipe before it.
        seconds: wall time of building, training and evaluating; not of an attempt that ran out of memory.
        parts: how many every batch was split in, so that the candidate fitted in memory.
        kept_step: optimiser step whose weights were kept, 0 for those as built; None where the fine-tune was stopped.
        rungs: optimiser step -> top-1 error there, on at most `RUNG_IMAGES` images of the search split.
    """

    error: float | None
    error_before: float
    kl: float | None
    kl_before: float
    costs: Mapping[Cost, float]
    steps: int
    seconds: float
    cross_entropy: float | None = None
    kept_step: int | None = None
    parts: int = 1
    rungs: Mapping[int, float] = field(default_factory=dict)

    def figure(self, name: str) -> float | None:
        """One of `figure_names`; None where it is not known."""
        found: float | None = self.costs.get(name) if name in COSTS else getattr(self, name)
        return found


@dataclass(frozen=True, kw_only=True)
class AsBuilt:
    """What a candidate is as built from the factors, beside the dense model, on the images of the profile.

    Attributes:
        divergence: mean KL divergence from the dense model, in nats; NaN where it could not be measured.
        changed: share of the images that it answers otherwise than the dense model; likewise.
    """

    divergence: float
    changed: float


def figure_names(costs: Iterable[Cost]) -> tuple[str, ...]:
    """Names of a score's figures as tables have them, where it has these costs."""
    return ("error", "error_before", "kl", "kl_before", "cross_entropy", *costs, "steps", "kept_step", "seconds")
