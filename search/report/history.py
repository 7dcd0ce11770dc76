"""How a search went: hypervolume and best error after every finished trial."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from search.pareto import front, hypervolume
from search.run.finished_trial import FinishedTrial
from search.run.summary import RunSummary


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a search had come to after every finished trial, in the order in which they ended.

    Attributes:
        trials: 1, 2, ...
        hours: since the first one began.
        hypervolume: as in pareto.json.
        best: the smallest expected error, in percent, under the first target; None before one is under it.
    """

    trials: list[int]
    hours: list[float]
    hypervolume: list[float]
    best: list[float | None]


def progress_of(points: Sequence[FinishedTrial], summary: RunSummary) -> Progress:
    """The progress of a run.

    Args:
        points: its complete trials.
        summary: with objectives and targets of the run.
    """
    ordered = sorted(points, key=lambda trial: (trial.ended, trial.number))
    limits = summary.targets[0].limits if summary.targets else {}
    volumes, bests = list[float](), list[float | None]()
    kept: list[tuple[float, ...]] = []
    volume, best = 0.0, None
    for trial in ordered:
        point = tuple(map(trial.objective, summary.objectives))
        if not any(all(a <= b for a, b in zip(other, point, strict=True)) for other in kept):  # nearly all change nothing
            kept = [[*kept, point][index] for index in front([*kept, point])]
            volume = hypervolume(kept, [1.0] * len(point))
        if all(trial.figure(cost) <= limit for cost, limit in limits.items()):
            error = 100 * trial.objective("error")
            best = error if best is None else min(best, error)
        volumes.append(volume)
        bests.append(best)
    return Progress(trials=list(range(1, len(ordered) + 1)), hours=_hours(ordered), hypervolume=volumes, best=bests)


def _hours(ordered: Sequence[FinishedTrial]) -> list[float]:
    ends = [datetime.fromisoformat(trial.ended).timestamp() for trial in ordered]
    first = min((end - (trial.seconds or 0.0) for end, trial in zip(ends, ordered, strict=True)), default=0.0)
    return [(end - first) / 3600 for end in ends]
