"""What a run came to, as pareto.json keeps it: its dense model, its targets, its front and what is best."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from objectives.cost.spec import Cost, CostSpec, known_costs
from objectives.objective import SplitBefore
from search.budgets.targets import Budget, Reach
from search.pareto import front, hypervolume
from search.run.finished_trial import FinishedTrial, best_within
from search.trial import DENSE
from spaces.allocation import Allocation
from spaces.sites import Site, Space


@dataclass(frozen=True, kw_only=True)
class DenseFigures:
    """Figures of the dense model.

    Attributes:
        costs: cost -> figure, in the cost's unit; those that the search knows.
        error: top-1 error on the search split as it was loaded, in [0, 1].
        error_finetuned: the same after the fine-tune of candidates; None until that trial has finished.
    """

    costs: Mapping[Cost, float]
    error: float
    error_finetuned: float | None = None


@dataclass(frozen=True, kw_only=True)
class LatencySource:
    """Where the latencies of a run are from.

    Attributes:
        text: batch, precision and device, for people.
        error: largest error of the table on the models that it was checked with, as a share.
    """

    text: str
    error: float


@dataclass(frozen=True, kw_only=True)
class FrontPoint:
    """A trial on the front; its figures are those of `FinishedTrial`."""

    number: int
    label: str | None
    space: str
    error: float
    error_before: float | None
    kl: float | None
    kl_before: float | None
    cross_entropy: float | None
    costs: Mapping[Cost, float]
    steps: int | None
    kept_step: int | None
    seconds: float | None
    allocation: Allocation


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a run came to.

    Attributes:
        model: name of the dense model.
        classes: of its head.
        fingerprint: of its weights, the space and the calibration images.
        space: name of the searched space.
        spaces: name -> space, of the searched one and of those that recipes make models in.
        dense: figures of the dense model.
        split_before: split that errors and divergences as built were measured on; for train, on the images of the profile.
        reach: cost -> (smallest allocation's, dense model's).
        latency: where latencies are from; None where none was measured.
        objectives: "error" and the costs that are minimised with it.
        targets: what the targets come to for this model.
        states: state -> how many trials ended in it.
        hypervolume: of the front in the unit box: errors as they are, costs as shares of the dense model's.
        best: of every target, the number of the best trial under it; None where there is none.
        front: in ascending order of the first cost among the objectives.
    """

    model: str
    classes: int | None
    fingerprint: str
    space: str
    spaces: Mapping[str, Space]
    dense: DenseFigures
    split_before: SplitBefore
    reach: Reach
    latency: LatencySource | None = None
    objectives: tuple[str, ...]
    targets: tuple[Budget, ...]
    states: Mapping[str, int] = field(default_factory=dict)
    hypervolume: float = 0.0
    best: tuple[int | None, ...] = ()
    front: tuple[FrontPoint, ...] = ()

    @property
    def images_before(self) -> str:
        """The images that errors and divergences as built were measured on, for people."""
        return "training images" if self.split_before == "train" else "search split"

    @property
    def costs(self) -> tuple[CostSpec, ...]:
        """Those that the run knows; a measured one only where it measured it."""
        return known_costs(self.dense.costs)

    @property
    def first_cost(self) -> Cost:
        """The first cost among the objectives."""
        return next(name for name in self.objectives if name != "error")

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of all spaces, each once, the searched space's first."""
        found: dict[str, Site] = {}
        for space in self.spaces.values():
            for site in space.all_sites:
                found.setdefault(site.name, site)
        return tuple(found.values())

    def kept(self, point: FrontPoint, cost: Cost) -> float:
        """What a point keeps of the dense model's cost."""
        return point.costs[cost] / self.dense.costs[cost]


def summarise(run: RunSummary, trials: Sequence[FinishedTrial]) -> RunSummary:
    """A run's summary with what its trials came to.

    Args:
        run: model, spaces, dense figures, reach, objectives and targets of the run; the rest is replaced.
        trials: in the order of their numbers.
    """
    complete = [trial for trial in trials if trial.is_complete]
    points = [tuple(map(trial.objective, run.objectives)) for trial in complete]
    chosen = sorted((complete[index] for index in front(points)), key=lambda trial: trial.objective(run.first_cost))
    best = [best_within(complete, budget.limits) for budget in run.targets]
    return replace(
        run,
        dense=replace(run.dense, error_finetuned=next((trial.error for trial in complete if trial.label == DENSE), None)),
        states=dict(Counter(trial.state for trial in trials).most_common()),
        hypervolume=hypervolume(points, [1.0] * len(run.objectives)),
        best=tuple(None if trial is None else trial.number for trial in best),
        front=tuple(map(front_point, chosen)),
    )


def front_point(trial: FinishedTrial) -> FrontPoint:
    """What the summary keeps of a complete trial."""
    return FrontPoint(
        number=trial.number,
        label=trial.label,
        space=trial.space,
        error=trial.figure("error"),
        error_before=trial.error_before,
        kl=trial.kl,
        kl_before=trial.kl_before,
        cross_entropy=trial.cross_entropy,
        costs=trial.costs,
        steps=trial.steps,
        kept_step=trial.kept_step,
        seconds=trial.seconds,
        allocation=trial.allocation,
    )
