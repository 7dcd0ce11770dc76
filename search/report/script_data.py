"""What the page's script reads of one run; `ScriptData.to_json` has the names that it reads it by."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from objectives.cost.spec import MAIN, Cost
from objectives.profile import Profile
from search.report.front_plot import FrontPlot, front_plot
from search.report.history import Progress, progress_of
from search.report.site_grid import SHARES, Grid, conditions, grid_of
from search.report.trial_texts import TrialTexts, number_text, reference_text
from search.run.finished_trial import FinishedTrial
from search.run.summary import RunSummary
from spaces.sites import Site, Space


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A site's cell in the table of sizes."""

    name: str
    block: str
    column: str
    kind: str
    dense: int


@dataclass(frozen=True, kw_only=True)
class ShownPoint:
    """A trial that is drawn.

    Attributes:
        label: '' for none.
        space: of its allocation.
        sizes: of all sites of the run; the dense one of those that are not in its space.
        texts: its figures.
    """

    label: str
    space: str
    sizes: list[int]
    texts: TrialTexts


@dataclass(frozen=True, kw_only=True)
class ShownStop:
    """A trial that was stopped early: why, at which rung, and its figures."""

    reason: str
    rung: str
    texts: TrialTexts


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What every site costs by itself: percent kept -> block -> column -> error, and what that was measured on."""

    conditions: str
    grids: Mapping[str, Grid]


@dataclass(frozen=True, kw_only=True)
class ScriptData:
    """What the page's script reads of one run.

    Attributes:
        sites: of all spaces of the run.
        spaces: name -> indices of its sites.
        costs: cost -> its word.
        points: number -> a trial that is drawn.
        plots: cost -> what is drawn.
        stopped: number -> a trial that was stopped early.
        progress: of the search.
        chosen: number of the trial that is shown first; None where there is none.
        dense: error of the dense model, as text.
        images_before: those of the figures as built, in words.
        command: that exports a trial, without its number.
        sensitivity: of the run's profile, if it has one.
        csv: trials.csv.
    """

    sites: list[Cell]
    spaces: Mapping[str, list[int]]
    costs: Mapping[Cost, str]
    points: Mapping[int, ShownPoint]
    plots: Mapping[Cost, FrontPlot]
    stopped: Mapping[int, ShownStop]
    progress: Progress
    chosen: int | None
    dense: str
    images_before: str
    command: str
    sensitivity: Sensitivity | None
    csv: str

    def to_json(self, name: str) -> dict[str, Any]:
        """As JSON values, with the name of the run."""
        return {
            "sites": [asdict(cell) for cell in self.sites],
            "spaces": self.spaces,
            "main": MAIN.name,
            "costs": self.costs,
            "points": {
                number: {"label": point.label, "space": point.space, "sizes": point.sizes, **point.texts.to_json()}
                for number, point in self.points.items()
            },
            "figures": {cost: asdict(plot) for cost, plot in self.plots.items()},
            "stopped": {
                number: {"reason": stop.reason, "rung": stop.rung, **stop.texts.to_json()}
                for number, stop in self.stopped.items()
            },
            "progress": asdict(self.progress),
            "chosen": self.chosen,
            "dense": self.dense,
            "images_before": self.images_before,
            "command": self.command,
            "sensitivity": None if self.sensitivity is None else asdict(self.sensitivity),
            "csv": self.csv,
            "name": name,
        }


def script_data(
    run: str,
    summary: RunSummary,
    points: Sequence[FinishedTrial],
    stopped: Sequence[FinishedTrial],
    texts: Mapping[int, TrialTexts],
    sensitivity: Sensitivity | None,
    csv: str,
) -> ScriptData:
    """What the script reads of a run.

    Args:
        run: its directory.
        summary: of it.
        points: the trials that are drawn.
        stopped: those that were stopped early.
        texts: number -> figures of all of them.
        sensitivity: of its profile, if it has one.
        csv: its trials.csv.
    """
    sites = summary.sites
    index = {site.name: index for index, site in enumerate(sites)}
    return ScriptData(
        sites=[_cell(site) for site in sites],
        spaces={name: sorted(index[site.name] for site in space.all_sites) for name, space in summary.spaces.items()},
        costs={spec.name: spec.word for spec in summary.costs},
        points={trial.number: _point(trial, texts[trial.number], sites) for trial in points},
        plots={spec.name: front_plot(spec, summary, points, stopped) for spec in summary.costs},
        stopped={trial.number: _stop(trial, texts[trial.number]) for trial in stopped},
        progress=progress_of(points, summary),
        chosen=_chosen(summary, points),
        dense=reference_text(summary.dense),
        images_before=summary.images_before,
        command=f"python run_search.py export {shlex.quote(run)} --trial ",
        sensitivity=sensitivity,
        csv=csv,
    )


def sensitivity_of(profile: Profile, space: Space) -> Sensitivity:
    """What every site of a space costs by itself."""
    grids = {f"{100 * share:.0f}": grid_of(profile.errors, space, share) for share in SHARES}
    return Sensitivity(conditions=conditions(profile), grids=grids)


def _cell(site: Site) -> Cell:
    block, column = site.place
    return Cell(name=site.name, block=block, column=column, kind=site.kind, dense=site.dense)


def _point(trial: FinishedTrial, texts: TrialTexts, sites: Sequence[Site]) -> ShownPoint:
    return ShownPoint(
        label=trial.label or "",
        space=trial.space,
        sizes=[trial.allocation.get(site.name, site.dense) for site in sites],
        texts=texts,
    )


def _stop(trial: FinishedTrial, texts: TrialTexts) -> ShownStop:
    return ShownStop(reason=trial.reason or "", rung=number_text(trial.rung, ".0f"), texts=texts)


def _chosen(summary: RunSummary, points: Sequence[FinishedTrial]) -> int | None:
    """The best under the first target that has one, else the cheapest of the front, else any."""
    shown = [trial.number for trial in points]
    front = sorted(summary.front, key=lambda point: point.costs[MAIN.name])
    wanted = [*summary.best, *(point.number for point in front), *shown]
    return next((number for number in wanted if number in shown), None)
