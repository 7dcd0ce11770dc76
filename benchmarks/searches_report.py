"""Tables and curves of benchmarks/searches.py."""

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from optuna._hypervolume import compute_hypervolume

from search.pareto import hypervolume

REFERENCE = (1.0, 1.0)
_TRIALS = (10, 20, 30, 50, 100, 200)


@dataclass(frozen=True, kw_only=True)
class Search:
    """One search: of every trial the share of MACs kept, the error and the wall time at its end, in seconds.

    Attributes:
        proposing: seconds spent on proposing, without screening.
        screening: seconds spent on screening.
        best: hypervolume of the best front known, where it is known.
    """

    problem: str
    method: str
    seed: int
    shares: list[float]
    errors: list[float]
    seconds: list[float]
    proposing: float
    screening: float
    best: float | None

    def volume_at(self, trials: int) -> float:
        """Hypervolume of the first trials."""
        return hypervolume(list(zip(self.shares, self.errors, strict=True))[:trials], REFERENCE)


def read(path: Path) -> list[Search]:
    """The searches so far."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Search(**json.loads(line)) for line in lines]


def report(searches: list[Search], picture: Path | None) -> None:
    """Markdown tables of every problem: median over seeds of the hypervolume, as a share of the best front known."""
    curves = {search.problem: _Curves([each for each in searches if each.problem == search.problem]) for search in searches}
    for name, problem in curves.items():
        problem.check()
        print(f"\n### {name}\n")
        problem.table()
        problem.reached()
    if picture is not None:
        _draw(curves, picture)
        print(f"\n![hypervolume against trials and time]({picture.name})")


class _Curves:
    """All searches of one problem."""

    def __init__(self, searches: Sequence[Search]) -> None:
        self.methods: dict[str, list[Search]] = defaultdict(list)
        for search in searches:
            self.methods[search.method].append(search)
        volumes = {search.seed: 0.0 for search in searches}
        for search in searches:  # where no front is known: the front of all searches of that seed
            volumes[search.seed] = search.best or 0.0
        together = [point for search in searches for point in zip(search.shares, search.errors, strict=True)]
        self._best = {seed: volume or hypervolume(together, REFERENCE) for seed, volume in volumes.items()}

    def curve(self, search: Search) -> list[float]:
        """Share of the best volume after every trial."""
        return [search.volume_at(trials) / self._best[search.seed] for trials in range(1, len(search.errors) + 1)]

    def check(self) -> None:
        """Optuna's own hypervolume must agree."""
        for search in (searches[0] for searches in self.methods.values()):
            points = np.array([search.shares, search.errors]).T
            volume = compute_hypervolume(points, np.array(REFERENCE))
            assert abs(volume - search.volume_at(len(points))) < 1e-9, (volume, search.volume_at(len(points)))

    def table(self) -> None:
        print(f"| method | seeds | {' | '.join(map(str, _TRIALS))} | ms to propose | seconds a trial |")
        print(f"|---|---|{'---|' * (len(_TRIALS) + 2)}")
        for name, searches in self.methods.items():
            curves = [self.curve(search) for search in searches]
            cells = [_cell([curve[trials - 1] for curve in curves if len(curve) >= trials]) for trials in _TRIALS]
            proposing = statistics.median(1000 * search.proposing / len(search.errors) for search in searches)
            seconds = statistics.median(search.seconds[-1] / len(search.errors) for search in searches)
            print(f"| {name} | {len(searches)} | {' | '.join(cells)} | {proposing:.0f} | {seconds:.2f} |")

    def reached(self) -> None:
        """Trials until the volumes of baselines are reached, median over the seeds that both have."""
        for baseline, trials in (("sizes, TPE", 200), ("multipliers, TPE", 100), ("sizes, GP, warm start", 100)):
            found = {search.seed: self.curve(search) for search in self.methods.get(baseline, ())}
            goals = {seed: curve[trials - 1] for seed, curve in found.items() if len(curve) >= trials}
            if not goals:
                continue
            print(f"\nTrials until the volume that *{baseline}* has after {trials} ({_cell(list(goals.values()))}): ", end="")
            print("; ".join(f"{name} {self._until(name, goals)}" for name in self.methods if name.startswith("ours")) + ".")

    def _until(self, name: str, goals: Mapping[int, float]) -> str:
        counts = [
            next((trials for trials, volume in enumerate(self.curve(search), start=1) if volume >= goals[search.seed]), np.inf)
            for search in self.methods[name]
            if search.seed in goals
        ]
        median = statistics.median(counts) if counts else np.nan
        return f"{median:.0f} ({min(counts):.0f} to {max(counts):.0f})" if np.isfinite(median) else "not reached"


def _cell(values: list[float]) -> str:
    return f"{statistics.median(values):.4f}" if values else "–"


def _draw(curves: Mapping[str, _Curves], path: Path) -> None:
    """Median and range over seeds, a row per problem: against trials and against wall time."""
    figure, axes = plt.subplots(len(curves), 2, figsize=(11, 3.4 * len(curves)), squeeze=False)
    for (name, problem), (left, right) in zip(curves.items(), axes, strict=True):
        for number, (method, searches) in enumerate(problem.methods.items()):
            style = {"color": f"C{number % 10}", "linestyle": "-" if method.startswith("ours") else "--"}
            length = min(len(search.errors) for search in searches)
            volumes = np.array([problem.curve(search)[:length] for search in searches])
            middle = np.median(volumes, axis=0)
            left.plot(range(1, length + 1), middle, label=method, **style)
            left.fill_between(range(1, length + 1), volumes.min(0), volumes.max(0), color=style["color"], alpha=0.1, lw=0)
            right.plot(np.median([search.seconds[:length] for search in searches], axis=0), middle, **style)
        every = [problem.curve(search) for searches in problem.methods.values() for search in searches]
        floor = min(curve[min(9, len(curve) - 1)] for curve in every)
        for axis, label in ((left, "paid trials"), (right, "seconds")):
            axis.set(xscale="log", xlabel=label, ylim=(max(0.0, floor - 0.05), 1.005))
            axis.grid(alpha=0.3)
        left.set(ylabel="share of the best hypervolume", title=name)
        left.legend(fontsize=6, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
