"""A trial: what is proposed, how a job of it ended, and what is recorded of it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from objectives.cost.spec import Cost
from objectives.score import Score
from spaces.allocation import Allocation

SCREENED = "additive:screened"  # attribute of a trial: parameters and divergence of the candidates that it was chosen from
DENSE = "dense"  # label of the reference: the dense model given the same fine-tune
DENSE_TAIL = "dense, tail"  # the same without what no output reads
WARM_START = "warm start"  # what the profile alone chooses


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A trial to be run.

    Attributes:
        number: of the trial, counted from 0 in the order of proposing.
        allocation: what to build; None while a recipe has not made it.
        space: name of the space of the allocation.
        seed: for its fine-tune.
        label: name of the baseline that it is, if it is one; of a repeat, what it repeats.
        parameters: what the sampler sees; empty for an allocation outside of the sampled band.
        attributes: what the sampler noted with it, by Optuna's names; part of no trial that is read from the journal.
        recipe: name of the recipe that makes the model, in place of an allocation.
        limits: the recipe's budget: cost -> bound; counted costs alone.
        repeats: number of the first trial of its allocation, where it is another fine-tune of that.
        gain: by how much the sampler expected it to lower the front, as an error averaged over the band of its target.
        known_to: standard deviation of the front's level then.
    """

    number: int
    allocation: Allocation | None
    space: str
    seed: int
    label: str | None = None
    parameters: Mapping[str, float] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict, compare=False)
    recipe: str | None = None
    limits: Mapping[Cost, float] = field(default_factory=dict)
    repeats: int | None = None
    gain: float | None = None
    known_to: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "allocation": None if self.allocation is None else dict(self.allocation)}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> "Proposal":
        """Inverse of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: not what `to_dict` gives.
        """
        sizes = entry["allocation"]
        return cls(**{**entry, "allocation": None if sizes is None else Allocation(sizes)})


@dataclass(frozen=True, kw_only=True)
class Screening:
    """Candidates of a trial to be; the sampler takes one of them when their divergences as built are known.

    Attributes:
        number: of the trial to be.
        candidates: to be measured, the most promising first.
    """

    number: int
    candidates: tuple[Allocation, ...]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A fine-tune that is no trial, to see what a learning rate does.

    Attributes:
        number: of the job; below 0, since trials have the others.
        allocation: what to build.
        lr: peak learning rate.
        steps: optimiser steps, over which the whole schedule is spread.
    """

    number: int
    allocation: Allocation
    lr: float
    steps: int


Job = Proposal | Screening | Probe


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended.

    Attributes:
        number: of the trial.
        score: its figures; None where it failed.
        reason: why it failed or was stopped.
        allocation: what a recipe made.
        starved: it ran out of memory, also with its batches in parts. What its worker holds is better given back.
        lost: it did not fail itself: its worker ended, or was ended because it hung. The same job may succeed elsewhere.
    """

    number: int
    score: Score | None
    reason: str | None = None
    allocation: Allocation | None = None
    starved: bool = False
    lost: bool = False


@dataclass(frozen=True, kw_only=True)
class Screened:
    """What candidates are as built, in their order; NaN where it could not be measured.

    Attributes:
        number: of the trial to be.
        divergences: from the dense model, in nats.
        changed: shares of the images that are answered otherwise than by the dense model.
    """

    number: int
    divergences: tuple[float, ...]
    changed: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Probed:
    """Divergence of a probe from the dense model after its fine-tune, in nats, on the rung images; NaN where it diverged."""

    number: int
    kl: float


Ended = Outcome | Screened | Probed


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial that has ended.

    Attributes:
        proposal: what was proposed.
        score: what it came to; None for a failed one.
        reason: why it has no score, or was stopped at a rung.
        ended: when it was recorded, as ISO 8601 in UTC.
    """

    proposal: Proposal
    score: Score | None
    reason: str | None
    ended: str

    @property
    def state(self) -> str:
        """COMPLETE; PRUNED where it was stopped at a rung, with a score that lacks the final error; or FAIL."""
        if self.score is None:
            return "FAIL"
        return "COMPLETE" if self.score.error is not None else "PRUNED"
