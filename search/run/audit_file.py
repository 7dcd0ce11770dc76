"""audit.json: what an audit of the short fine-tune found, written and read back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from objectives.cost.spec import Cost, counted_costs
from search.layout import AUDIT
from spaces.errors import RunError
from spaces.files import write_json
from spaces.schema import FLAG, NUMBER, OBJECT, SIZE, TEXT, WHOLE, Maybe, read_json

_TAU = Maybe(NUMBER)
_AGREEMENT = {
    "count": WHOLE, "per_seed": [_TAU], **dict.fromkeys(("tau", "mean", "spread", "between_seeds", "test", "by_chance"), _TAU),
}  # fmt: skip
_POINT = {
    "number": WHOLE, "label": Maybe(TEXT), "front": FLAG, "similar": FLAG, "long": [NUMBER], "test": [NUMBER],
    **dict.fromkeys(("short", "mean", "spread", "test_mean", "test_spread"), NUMBER),
}  # fmt: skip
AUDIT_SCHEMA = {
    "factor": SIZE,
    "steps": {"short": WHOLE, "long": WHOLE},
    "seeds": [WHOLE],
    "cost": TEXT,
    "points": [{**_POINT, **{spec.kept: NUMBER for spec in counted_costs()}}],
    "front": _AGREEMENT,
    "similar": _AGREEMENT,
    "environment": OBJECT,
}


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Optimiser steps of the search's fine-tune, and of the audit's."""

    short: int
    long: int


@dataclass(frozen=True, kw_only=True)
class AuditedPoint:
    """A trial of an audit.

    Attributes:
        number, label: of the trial.
        kept: counted cost -> share of the dense model's.
        front: whether it is one of those along the front.
        similar: whether it is one of those of similar cost.
        short: error that the search expects of it, after its fine-tune.
        long: for each seed, its error after the long fine-tune, on the search split.
        mean, spread: of those; the standard deviation.
        test, test_mean, test_spread: the same on the test split.
    """

    number: int
    label: str | None
    kept: Mapping[Cost, float]
    front: bool
    similar: bool
    short: float
    long: tuple[float, ...]
    mean: float
    spread: float
    test: tuple[float, ...]
    test_mean: float
    test_spread: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Kendall's tau between the order of trials by a short fine-tune and by a long one; None where it is undefined.

    Attributes:
        count: trials.
        tau: of the short error with the mean of the long ones over the seeds.
        per_seed: of the short error with the long one of every seed.
        mean, spread: of those; the standard deviation.
        between_seeds: of the long fine-tune with itself, the mean over pairs of seeds: what the noise allows.
        test: of the short error with the long one on the test split.
        by_chance: standard deviation of tau between unrelated orders.
    """

    count: int
    tau: float | None
    per_seed: tuple[float | None, ...]
    mean: float | None
    spread: float | None
    between_seeds: float | None
    test: float | None
    by_chance: float | None


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What an audit found.

    Attributes:
        factor: steps of the long fine-tune over those of the short one.
        steps: of both.
        seeds: of the long fine-tunes.
        cost: that trials were spread over.
        points: all trials of the audit, from the cheapest.
        front: agreement of the trials along the front.
        similar: agreement of those of similar cost.
        environment: versions and machine, as JSON.
    """

    factor: int
    steps: Steps
    seeds: tuple[int, ...]
    cost: Cost
    points: tuple[AuditedPoint, ...]
    front: Agreement
    similar: Agreement
    environment: Mapping[str, Any]


def write_audit(directory: Path, audit: Audit) -> None:
    """Write audit.json."""
    write_json(directory / AUDIT, {**asdict(audit), "points": [_point_to_json(point) for point in audit.points]})


def read_audit(directory: Path) -> Audit | None:
    """What the last audit of a run found; None before there was one.

    Raises:
        RunError: it cannot be read.
    """
    path = directory / AUDIT
    try:
        return _audit(read_json(path, AUDIT_SCHEMA)) if path.exists() else None
    except ValueError as error:
        raise RunError(f"{path} cannot be read ({error}): remove it, and audit the run again") from error


def _point_to_json(point: AuditedPoint) -> dict[str, Any]:
    return {
        "number": point.number,
        "label": point.label,
        **{spec.kept: point.kept[spec.name] for spec in counted_costs()},
        **{name: value for name, value in asdict(point).items() if name not in ("number", "label", "kept")},
    }


def _audit(content: Mapping[str, Any]) -> Audit:
    return Audit(
        factor=content["factor"],
        steps=Steps(short=content["steps"]["short"], long=content["steps"]["long"]),
        seeds=tuple(content["seeds"]),
        cost=content["cost"],
        points=tuple(map(_point, content["points"])),
        front=_agreement(content["front"]),
        similar=_agreement(content["similar"]),
        environment=content["environment"],
    )


def _point(entry: Mapping[str, Any]) -> AuditedPoint:
    kept = {spec.name: entry[spec.kept] for spec in counted_costs()}
    lists = {name: tuple(entry[name]) for name in ("long", "test")}
    return AuditedPoint(kept=kept, **{**{name: entry[name] for name in _POINT}, **lists})


def _agreement(entry: Mapping[str, Any]) -> Agreement:
    return Agreement(**{**{name: entry[name] for name in _AGREEMENT}, "per_seed": tuple(entry["per_seed"])})
