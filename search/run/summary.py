"""What a run came to, as pareto.json keeps it: its dense model, its targets, its front and what is best."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from objectives.cost.spec import Cost, CostSpec, known_costs
from objectives.objective import SplitBefore
from search.budgets.targets import Budget, Reach
from search.evidence.intervals import Interval
from search.evidence.options import Preference
from search.evidence.posterior import NO_EVIDENCE, Evidence
from search.evidence.settled import Worth
from search.pareto import front, hypervolume
from search.run.finished_trial import FinishedTrial, pick_within
from search.trial import DENSE, WARM_START
from spaces.allocation import Allocation
from spaces.sites import Site, Space


@dataclass(frozen=True, kw_only=True)
class DenseFigures:
    """Figures of the dense model.

    Attributes:
        costs: cost -> figure, in the cost's unit; those that the search knows.
        error: top-1 error on the search split as it was loaded, in [0, 1].
        error_finetuned: the same after the fine-tune of candidates; None until that trial has finished.
        images: of the search split; 0 where that is not known.
        tested: images of the test split; 0 where that is not known.
        expected: error that the test split should show of the fine-tuned one; None where that is not known.
    """

    costs: Mapping[Cost, float]
    error: float
    error_finetuned: float | None = None
    images: int = 0
    tested: int = 0
    expected: Interval | None = None


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
    expected: Interval | None = None

    @property
    def best_guess(self) -> float:
        """The expected error, or the measured one where that is not known."""
        return self.error if self.expected is None else self.expected.mean


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best trial under a target.

    Attributes:
        number: of the trial.
        tied: of the others under the target those that cannot be told apart from the one of least expected error, the
            cheapest first.
        among: finished trials under the target whose errors are known by more than one figure, this one included.
        start: number of the warm start on the whole target: what the profile alone chose; None without one.
        gained: error of the start minus that of the best, on endless images; None where that is not known.
        lost: error of the best minus that of the dense model given the same fine-tune; likewise.
    """

    number: int
    tied: tuple[int, ...] = ()
    among: int = 0
    start: int | None = None
    gained: Interval | None = None
    lost: Interval | None = None


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
        prefer: what decides among trials that cannot be told apart.
        targets: what the targets come to for this model.
        states: state -> how many trials ended in it.
        hypervolume: of the front in the unit box: errors as they are, costs as shares of the dense model's.
        bests: of every target, the best trial under it; None where there is none.
        front: in ascending order of the first cost among the objectives.
        worth: what a further trial was worth when the last one was proposed; None where that is not known.
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
    prefer: Preference = "accurate"
    targets: tuple[Budget, ...]
    states: Mapping[str, int] = field(default_factory=dict)
    hypervolume: float = 0.0
    bests: tuple[Best | None, ...] = ()
    front: tuple[FrontPoint, ...] = ()
    worth: Worth | None = None

    @property
    def images_before(self) -> str:
        """The images that errors and divergences as built were measured on, for people."""
        return "training images" if self.split_before == "train" else "search split"

    @property
    def best(self) -> tuple[int | None, ...]:
        """Of every target, the number of the best trial under it; None where there is none."""
        return tuple(None if found is None else found.number for found in self.bests)

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


def summarise(
    run: RunSummary, trials: Sequence[FinishedTrial], evidence: Evidence = NO_EVIDENCE, worth: Worth | None = None
) -> RunSummary:
    """A run's summary with what its trials came to.

    Args:
        run: model, spaces, dense figures, reach, objectives and targets of the run; the rest is replaced.
        trials: in the order of their numbers, with the errors that are expected of them.
        evidence: where these are from.
        worth: what a further trial is worth.
    """
    complete = [trial for trial in trials if trial.is_complete]
    points = [tuple(map(trial.objective, run.objectives)) for trial in complete]
    chosen = sorted((complete[index] for index in front(points)), key=lambda trial: trial.objective(run.first_cost))
    dense = next((trial for trial in complete if trial.label == DENSE), None)
    return replace(
        run,
        dense=replace(
            run.dense,
            error_finetuned=None if dense is None else dense.error,
            expected=None if dense is None else dense.expected,
        ),
        states=dict(Counter(trial.state for trial in trials).most_common()),
        hypervolume=hypervolume(points, [1.0] * len(run.objectives)),
        bests=tuple(_best(budget, complete, evidence, run.prefer) for budget in run.targets),
        front=tuple(map(front_point, chosen)),
        worth=worth,
    )


def _best(budget: Budget, trials: Sequence[FinishedTrial], evidence: Evidence, prefer: Preference) -> Best | None:
    found = pick_within(trials, budget.limits, evidence, prefer)
    if found is None:
        return None
    within = [trial for trial in trials if trial.load(budget.limits) <= 1]
    starts = [trial for trial in within if trial.label == WARM_START]
    start = max(starts, key=lambda trial: trial.load(budget.limits)).number if starts else None
    dense = next((trial.number for trial in trials if trial.label == DENSE), None)
    return Best(
        number=found.number,
        tied=found.tied,
        among=sum(trial.number in evidence for trial in within),
        start=start,
        gained=_difference(evidence, start, found.number),
        lost=_difference(evidence, found.number, dense),
    )


def _difference(evidence: Evidence, number: int | None, other: int | None) -> Interval | None:
    """By how much the error of one is above that of the other; None unless both are known."""
    if number is None or other is None or number not in evidence or other not in evidence:
        return None
    return evidence.difference(number, other)


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
        expected=trial.expected,
    )
