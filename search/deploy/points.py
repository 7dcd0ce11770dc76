"""Which points of a run are exported, from its tables: the best under a target, trials, the front, or a given allocation."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from objectives.cost.spec import MAIN, Cost
from search.budgets.targets import Target, parse_target
from search.evidence.intervals import Interval
from search.evidence.options import Preference
from search.run.finished_trial import FinishedTrial
from search.run.run import Run
from spaces.allocation import Allocation
from spaces.errors import AllocationError, RunError
from spaces.schema import read_json

GIVEN, MATERIALISED, PREDICTED = "given", "materialised", "predicted"  # labels of points that are no trials

# Below this share of a budget its best trial leaves a gap that is worth telling.
GAP = 0.95


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of a run that can be exported.

    Attributes:
        name: of its folder.
        allocation: its sizes; of a predicted point all of them, until it is chosen.
        space: name of their space.
        number: of the trial; None where the search has not evaluated it.
        label: of the trial, or what the point is in place of one: `GIVEN`, `MATERIALISED` or `PREDICTED`.
        target: what it was picked for, as text; None where it was asked for itself.
        limits: of the target: cost -> bound.
        load: how much of the target it uses; 1 is all of it.
        costs: cost -> figure; empty where they have not been counted yet.
        error: on the search split after the short fine-tune, of a predicted point as built; None where it is not measured yet.
        expected: error that the test split should show after it, by all that the search measured; None where not known.
        tied: trials that cannot be told apart from it under its target, the cheapest first.
        between: trials whose multipliers it was decoded from.
        instead_of: the best trial under its target, and its error; of a materialised point.
    """

    name: str
    allocation: Allocation
    space: str
    number: int | None = None
    label: str | None = None
    target: str | None = None
    limits: Mapping[Cost, float] = field(default_factory=dict)
    load: float | None = None
    costs: Mapping[Cost, float] = field(default_factory=dict)
    error: float | None = None
    expected: Interval | None = None
    tied: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    instead_of: tuple[int, float] | None = None

    @property
    def leaves_gap(self) -> bool:
        """Whether much of its target is unused."""
        return self.load is not None and self.load < GAP

    def origin(self, fingerprint: str) -> dict[str, Any]:
        """Where it comes from, as report.json and config.json keep it; `fingerprint` is of its run."""
        return {
            "run": fingerprint,
            "description": self.describe(),
            "trial": self.number,
            "label": self.label,
            "evaluated_by_search": self.number is not None,
            "target": self.target,
            "limits": dict(self.limits),
            "budget_used": self.load,
            "costs": dict(self.costs),
            "search_error": self.error,
            "expected": None if self.expected is None else asdict(self.expected),
            "tied": list(self.tied),
            "between_trials": list(self.between),
            "instead_of": None
            if self.instead_of is None
            else {"trial": self.instead_of[0], "search_error": self.instead_of[1]},
        }

    def describe(self) -> str:
        """Where it comes from, in words."""
        error = "" if self.error is None else f" (error {self.error:.2%} on the search split)"
        if self.number is not None:
            return f"trial {self.number}{f', the best under {self.target}' if self.target else ''}{error}"
        if self.label == PREDICTED:
            return f"the allocation of least predicted error on {self.target}, as built, without a fine-tune{error}"
        if self.instead_of is None:
            return f"an allocation that was given, not evaluated by the search{error}"
        number, best = self.instead_of
        source = f"the multipliers of trial {' and trial '.join(map(str, self.between))}" if self.between else "the profile"
        return (
            f"built on {self.target} from {source}, not evaluated by the search{error}, "
            f"in place of trial {number}, the best under {self.target} (error {best:.2%})"
        )

    def restored(self, origin: Mapping[str, Any], allocation: Allocation, fingerprint: str) -> "Point | None":
        """This point with what an export has found out, from the `origin` that it kept; None if it exported another one.

        Args:
            origin: of the export.
            allocation: of the export.
            fingerprint: of the run that it should be from.

        Raises:
            KeyError, TypeError: `origin` is none.
        """
        found = self
        if self.number is None:
            found = replace(
                self,
                allocation=allocation if self.label in (MATERIALISED, PREDICTED) else self.allocation,
                load=origin["budget_used"],
                costs=origin["costs"],
                error=origin["search_error"],
                between=tuple(origin["between_trials"]),
            )
        same = _without_beliefs(found.origin(fingerprint)) == _without_beliefs(origin)
        return found if same and found.allocation == allocation else None


class Wish(NamedTuple):
    """A point that was asked for: by which option of `export` and what it was given, and what finds the point."""

    option: str
    given: str
    pick: Callable[[], Point]

    @property
    def text(self) -> str:
        """For messages."""
        return self.given if self.option == "allocation" else f"{self.option} {self.given}"


def _without_beliefs(origin: Mapping[str, Any]) -> dict[str, Any]:
    """What an origin says of a point itself: what is believed of it changes with every trial that ends."""
    return {name: value for name, value in origin.items() if name not in ("expected", "tied")}


def wishes(
    run: Run,
    targets: Sequence[str] = (),
    trials: Sequence[int] = (),
    allocations: Sequence[Path] = (),
    front: bool = False,
    predicted: bool = False,
    prefer: Preference | None = None,
) -> list[Wish]:
    """What was asked for, each once; by default what the run was searched for.

    Args:
        run: where the points are.
        targets, trials, allocations, front: what to pick.
        predicted: whether targets are served by what the profile predicts, not by trials.
        prefer: what decides under a target among trials that cannot be told apart; None for what the run says.

    Raises:
        TargetError: a target is malformed.
        RunError: nothing was asked for and the run has no target, or the front was and there is none.
    """
    parsed = tuple(map(parse_target, dict.fromkeys(targets)))
    if not (targets or trials or allocations or front):
        parsed = run.config.study.targets
        if not parsed:
            raise RunError("say which points to export: --target flops=50%, --trial N, --all-front or --allocation FILE")
    numbers = [*trials, *(_front(run) if front else ())]
    pick = pick_predicted if predicted else partial(pick_target, prefer=prefer)
    return [
        *(Wish("target", target.text, partial(pick, run, target)) for target in dict.fromkeys(parsed)),
        *(Wish("trial", str(number), partial(pick_trial, run, number)) for number in dict.fromkeys(numbers)),
        *(Wish("allocation", str(path), partial(pick_file, run, path)) for path in dict.fromkeys(allocations)),
    ]


def pick_target(run: Run, target: str | Target, prefer: Preference | None = None) -> Point:
    """The best trial under a target.

    Args:
        run: where it is.
        target: as it was searched, or another.
        prefer: what decides among trials that cannot be told apart; None for what the run says.

    Raises:
        TargetError, RunError: `Run.pick`'s.
    """
    budget = run.budget(target)
    picked, limits, asked = run.pick(budget, prefer), budget.limits, budget.target
    best = run.trial(picked.number)
    point = replace(_point(best, asked.folder), target=asked.text, limits=limits, load=best.load(limits))
    return replace(point, tied=picked.tied)


def tied_notice(run: Run, point: Point, prefer: Preference | None = None) -> str:
    """That trials cannot be told apart under a point's target, which one was taken, and what takes the other.

    Args:
        run: of the point.
        point: picked for a target, with ties.
        prefer: as it was picked.
    """
    assert point.target is not None
    chosen: Preference = prefer or run.summary.prefer
    other: Preference = "cheap" if chosen == "accurate" else "accurate"
    claim = f"{len(point.tied) + 1} trials cannot be told apart under {point.target}"
    taken = f"{claim}: the {'most accurate' if chosen == 'accurate' else 'cheapest'} was taken"
    instead = run.trial(run.pick(point.target, other).number)
    if instead.number == point.number:
        return f"{taken}, which is the {'cheapest' if chosen == 'accurate' else 'most accurate'} of them too"
    return f"{taken} (--prefer {other} takes trial {instead.number}, {instead.kept[MAIN.name]:.1%} of {MAIN.word})"


def pick_predicted(run: Run, target: str | Target) -> Point:
    """What the profile alone would choose under a target; its allocation is found when the factors are there.

    Raises:
        TargetError: `Run.budget`'s.
        RunError: the run has a recipe only, and no factors to build from.
    """
    budget = run.budget(target)
    if run.config.study.recipe is not None:
        raise RunError(f"{run.directory} holds the recipe {run.config.study.recipe!r} alone, and no profile to predict from")
    return Point(
        name=f"{budget.target.folder}-{PREDICTED}",
        allocation=run.space.identity(),
        space=run.space.name,
        label=PREDICTED,
        target=budget.target.text,
        limits=budget.limits,
    )


def pick_trial(run: Run, number: int) -> Point:
    """One trial.

    Raises:
        RunError: `Run.trial`'s.
    """
    return _point(run.trial(number), f"trial{number}")


def pick_file(run: Run, path: Path) -> Point:
    """The allocation in a file: what the page's "Allocation as JSON" saves, or an object of site names and sizes.

    Where a trial of the run had this allocation, it is that trial.

    Raises:
        AllocationError: the file cannot be read, or holds no allocation of the run's space or of one of its trials.
    """
    allocation, space = _read(path)
    space = space or run.space.name
    name = f"allocation-{_safe(path.stem).removeprefix('allocation-')}"
    for trial in run.complete:
        if trial.space == space and trial.allocation == allocation:
            return _point(trial, name)
    if space != run.space.name:
        raise AllocationError(f"{path} is of space {space!r}, and no trial of {run.directory} in it has these sizes")
    try:
        run.space.validate(allocation)
    except AllocationError as error:
        raise AllocationError(f"{path}: {error}") from error
    return Point(name=name, allocation=allocation, space=space, label=GIVEN)


def _point(trial: FinishedTrial, name: str) -> Point:
    return Point(
        name=name,
        allocation=trial.allocation,
        space=trial.space,
        number=trial.number,
        label=trial.label,
        costs=trial.costs,
        error=trial.error,
        expected=trial.expected,
    )


def _front(run: Run) -> list[int]:
    if not run.summary.front:
        raise RunError(f"no trial of {run.directory} has finished")
    return [point.number for point in run.summary.front]


def _read(path: Path) -> tuple[Allocation, str | None]:
    """Allocation, and the name of its space where the file says it."""
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise AllocationError(f"{path} cannot be read as JSON: {getattr(error, 'strerror', None) or error}") from error
    sizes = content.get("allocation", content) if isinstance(content, dict) else None
    if not isinstance(sizes, dict) or not isinstance(space := content.get("space"), str | None):
        raise AllocationError(
            f"{path} holds no allocation: it must be an object of site names and sizes, or hold one as allocation"
        )
    try:
        return Allocation(sizes), space if sizes is not content else None
    except AllocationError as error:
        raise AllocationError(f"{path}: {error}") from error


def _safe(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip(".-") or "unnamed"
