"""Whether what a journal or a database holds are the trials of a search: checked before Optuna replays it, and after."""

import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from objectives.cost.spec import COSTS
from objectives.recipes.registry import recipe_of
from search.optuna_internals import contains
from search.trial import SCREENED, Proposal, Trial
from spaces.errors import RunError
from spaces.schema import (
    NUMBER,
    OBJECT,
    POSITIVE,
    REAL,
    SIZE,
    TEXT,
    WHOLE,
    Each,
    Kind,
    Maybe,
    SchemaError,
    check,
    choice,
    parse_json,
    read_json,
)
from spaces.sites import Space

STUDY = "search"  # its name in a journal file


def _is_time(value: Any) -> bool:
    try:
        return isinstance(value, str) and 1970 < datetime.fromisoformat(value).year < 9999
    except ValueError:
        return False


_NUMBER = Kind("the number of a trial", lambda value: WHOLE.holds(value) and value < 2**31)
_SEED = Kind("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63)
_TIME = Kind("a time, as 2026-11-27T12:00:00+00:00", _is_time)
_STEPS = Kind("numbers by whole numbers", lambda value: isinstance(value, dict) and all(key.isdecimal() for key in value))
_PROPOSAL = {
    "number": _NUMBER, "allocation": Maybe(Each(WHOLE)), "space": TEXT, "seed": _SEED, "label": Maybe(TEXT),
    "recipe": Maybe(TEXT), "limits": Each(POSITIVE), "repeats": Maybe(_NUMBER),
    "gain": Maybe(NUMBER), "known_to": Maybe(NUMBER),
}  # fmt: skip
_BEGUN = {**_PROPOSAL, "parameters": Each(NUMBER), "attributes": {f"{SCREENED}?": [(Each(NUMBER), NUMBER)]}}
_SCORE = {
    "error": Maybe(NUMBER), "error_before": REAL, "kl": Maybe(REAL), "kl_before": REAL, "cross_entropy": Maybe(REAL),
    "costs": Each(NUMBER), "kept_step": Maybe(WHOLE), "steps": WHOLE, "seconds": NUMBER, "parts": SIZE, "rungs": Each(REAL),
}  # fmt: skip
_ATTRIBUTES = {**_PROPOSAL, "reason": Maybe(TEXT), "ended": _TIME, "score": Maybe(_SCORE)}
_SYSTEM = {f"{SCREENED}?": [(Each(NUMBER), NUMBER)]}

# The operations that this project's journals have, by the numbers that Optuna gives them; every opening begins the study.
OPERATIONS = _BEGIN, _ATTRIBUTE, _TRIAL = 0, 2, 4
_LINES: dict[int, Any] = {
    _BEGIN: {"worker_id": TEXT, "study_name": choice(STUDY), "directions": [choice(1, 2)]},
    _ATTRIBUTE: {"worker_id": TEXT, "study_id": choice(0), "user_attr": OBJECT},
    _TRIAL: {
        "worker_id": TEXT, "study_id": choice(0), "datetime_start": _TIME, "datetime_complete": _TIME,
        "state": choice(*(state.value for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))),
        "value": Kind("null", lambda value: value is None), "values": Maybe([NUMBER]), "distributions": Each(TEXT),
        "params": Each(NUMBER), "user_attrs": _ATTRIBUTES, "system_attrs": OBJECT, "intermediate_values": OBJECT,
    },
}  # fmt: skip


def journal_numbers(path: Path) -> list[int]:
    """Numbers of the trials in a journal file, none where it is not there; a last line that was not finished does not count.

    A launch asks before anything is computed and when it opens the study. The file is read again only if it has changed.

    Raises:
        RunError: a line is no operation of a search's journal, or a trial is there twice; it names the line.
    """
    if not path.exists():
        return []
    found = path.stat()
    return list(_numbers_in(path, found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=1)
def _numbers_in(path: Path, *stamp: int) -> tuple[int, ...]:
    """Numbers of the trials in a file, whose stamp changes with its content."""
    known: dict[int, int] = {}  # trial -> line
    for index, line in enumerate(_lines(path), start=1):
        try:
            number = number_in(line, index == 1)
            if number is not None and known.setdefault(number, index) != index:
                raise SchemaError(f"trial {number} is in line {known[number]} already")
        except (ValueError, OverflowError) as error:
            raise RunError(
                f"{path}, line {index} cannot be read ({error}): correct or remove this line, or restore the file from a backup"
            ) from error
    return tuple(known)


def check_attributes(trial: FrozenTrial) -> None:
    """Raise unless the attributes of a stored trial are those of this project's.

    Raises:
        SchemaError: they are not.
    """
    attributes = trial.user_attrs
    check(attributes, _ATTRIBUTES)
    check(trial.system_attrs, _SYSTEM, "system_attrs")
    if unknown := attributes.keys() - _ATTRIBUTES.keys():
        raise SchemaError(f"{min(unknown)} is no attribute of a trial")
    if attributes["score"] is not None:
        check(attributes["score"]["rungs"], _STEPS, "score.rungs")
        if unknown := attributes["score"].keys() - _SCORE.keys():
            raise SchemaError(f"score.{min(unknown)} is no figure of a trial")
        _check_costs(attributes["score"]["costs"])


def _check_costs(costs: Mapping[str, Any]) -> None:
    """Raise unless all counted costs are there, and no unknown one."""
    names = {f"{spec.name}?" if spec.is_measured else spec.name: SIZE if spec.is_whole else NUMBER for spec in COSTS.values()}
    check(costs, names, "score.costs")
    if unknown := costs.keys() - COSTS.keys():
        raise SchemaError(f"score.costs.{min(unknown)} is no cost")


def check_result(trial: FrozenTrial, attributes: Mapping[str, Any], objectives: tuple[str, ...]) -> None:
    """Raise unless the state and the values of a stored trial are those that its score gives.

    Raises:
        SchemaError: they are not.
    """
    score = attributes["score"]
    expected = TrialState.FAIL if score is None else TrialState.PRUNED if score["error"] is None else TrialState.COMPLETE
    if trial.state != expected:
        raise SchemaError(f"its state is {trial.state.name}, but its score is that of a trial which is {expected.name}")
    if expected == TrialState.COMPLETE:
        values = [score["costs"].get(name) if name in COSTS else score[name] for name in objectives]
        if trial.values is None or not all(map(_is_same, trial.values, values)):
            raise SchemaError(f"its values are {trial.values}, but its score has {values}")


def check_parameters(
    parameters: Mapping[str, Any], attributes: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
) -> None:
    """Raise unless a trial was proposed from these distributions.

    Args:
        parameters: what its sampler proposed.
        attributes: what its sampler noted.
        distributions: of this search.

    Raises:
        SchemaError: a parameter is unknown or outside of its range.
    """
    screened = [pair[0] for pair in attributes.get(SCREENED, [])]
    for name, value in (item for each in (parameters, *screened) for item in each.items()):
        known = distributions.get(name)
        if known is None or not _is_inside(known, value):
            raise SchemaError(f"the parameter {name} is {value!r}, which this search does not propose")
    if any(each.keys() != distributions.keys() for each in screened):
        raise SchemaError("candidates that were screened for it lack parameters")


def _is_inside(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, FloatDistribution) and distribution.step is None and isinstance(value, float):
        return distribution.low <= value <= distribution.high  # of a screened candidate, as nearly all are
    return contains(distribution, distribution.to_internal_repr(value))


def check_allocation(proposal: Proposal, space: Space) -> None:
    """Raise unless a proposal has a recipe, or an allocation of the searched space.

    Raises:
        ValueError: it has neither.
    """
    if proposal.recipe is not None:
        if recipe_of(proposal.recipe).space != proposal.space:
            raise ValueError(f"the recipe {proposal.recipe} makes no model of space {proposal.space}")
    elif proposal.allocation is None or proposal.space != space.name:
        raise ValueError(f"it has no allocation of space {space.name}")
    if proposal.allocation is not None and proposal.space == space.name:
        space.validate(proposal.allocation)


def check_repeat(proposal: Proposal, trials: Iterable[Trial]) -> None:
    """Raise unless a proposal repeats nothing, or one of these trials.

    Raises:
        ValueError: it repeats another.
    """
    if proposal.repeats is None:
        return
    first = next((trial.proposal for trial in trials if trial.proposal.number == proposal.repeats), None)
    if first is None or first.allocation != proposal.allocation or proposal.parameters:
        raise ValueError(f"it does not repeat trial {proposal.repeats}, as it says")


def read_begun(
    path: Path, distributions: Mapping[str, BaseDistribution], space: Space, trials: Iterable[Trial]
) -> Proposal | None:
    """The trial that a file says was started; None where the file is damaged: its number is then proposed again.

    Args:
        path: allocation.json in the folder of the trial.
        distributions: of this search.
        space: that is searched.
        trials: that have ended.
    """
    try:
        proposal = Proposal.from_dict(read_json(path, _BEGUN))
        check_parameters(proposal.parameters, proposal.attributes, distributions)
        check_allocation(proposal, space)
        check_repeat(proposal, trials)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return proposal if path.parent.name == f"{proposal.number:04d}" else None


def _is_same(stored: float, expected: Any) -> bool:
    return expected is not None and math.isclose(stored, expected, rel_tol=1e-6)


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from (line for line in file if line.endswith(b"\n"))


def number_in(line: bytes, first: bool) -> int | None:
    """The number of the trial that a line adds; None where it adds none."""
    entry = parse_json(line)
    check(entry, {"op_code": choice(*_LINES)})
    operation = int(entry["op_code"])
    if first and operation != _BEGIN:
        raise SchemaError("it does not begin the study, as the first one must")
    check(entry, _LINES[operation])
    if operation == _ATTRIBUTE and len(entry["user_attr"]) != 1:
        raise SchemaError("user_attr must have one name")
    if operation != _TRIAL:
        return None
    _check_distributions(entry)
    return int(entry["user_attrs"]["number"])


@lru_cache(maxsize=256)  # all trials have the same few
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


def _check_distributions(entry: dict[str, Any]) -> None:
    if entry["params"].keys() != entry["distributions"].keys() or entry["intermediate_values"]:
        raise SchemaError("params and distributions must have the same names, and intermediate_values none")
    for name, text in entry["distributions"].items():
        try:
            distribution = _distribution(text)
            is_inside = contains(distribution, entry["params"][name])
        except Exception as error:  # Optuna raises what it likes here
            raise SchemaError(f"distributions.{name} is none: {str(error)[:80]!r}") from error
        if not is_inside:
            raise SchemaError(f"params.{name} is {entry['params'][name]}, outside of its distribution")
