"""What the files of a run hold, and the checks that they agree with each other; whoever reads a run relies on that."""

from collections.abc import Sequence
from datetime import datetime
from itertools import groupby, pairwise
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from objectives.cost.spec import COSTS, MAIN, known_costs
from objectives.score import figure_names
from spaces.schema import FLAG, NUMBER, POSITIVE, SHARE, SIZE, TEXT, WHOLE, Each, Kind, Maybe, SchemaError, check, choice
from spaces.sites import Kind as SiteKind

HEAD = ("number", "state", "label", "space", "reason")
RUNG = ("rung", "rung_error")

_MOST = 1e18  # of any cost
STATES = ("COMPLETE", "PRUNED", "FAIL")
_PID = Kind("the number of a process", lambda value: SIZE.holds(value) and value < 2**31)
_SITE = {
    "name": TEXT, "branch": TEXT, "operator": TEXT, "kind": choice(*get_args(SiteKind)), "choices": [SIZE],
    "linear": Maybe((SIZE, SIZE)),
}  # fmt: skip
_TAU = Maybe(NUMBER)
_AGREEMENT = {"count": WHOLE, **dict.fromkeys(("tau", "mean", "spread", "between_seeds", "test", "by_chance"), _TAU)}
AUDIT_SCHEMA = {
    "factor": SIZE,
    "steps": {"short": WHOLE, "long": WHOLE},
    "points": [
        {
            "number": WHOLE, "label": Maybe(TEXT), "front": FLAG, "similar": FLAG,
            **dict.fromkeys((MAIN.kept, "short", "mean", "spread", "test_mean", "test_spread"), NUMBER),
        }
    ],
    "front": _AGREEMENT,
    "similar": _AGREEMENT,
}  # fmt: skip
RUNNING_SCHEMA = {
    "host": TEXT,
    "pid": _PID,
    "trials": [
        {
            "number": WHOLE, "label": Maybe(TEXT), "space": TEXT, "since": TEXT, "step": WHOLE, "steps": WHOLE,
            "rung": Maybe(WHOLE), "error": Maybe(NUMBER),
        }
    ],
}  # fmt: skip


def front_columns(objectives: Sequence[str]) -> list[str]:
    """Columns of trials.csv that a front is taken of: the error as it is, costs as shares of the dense model's."""
    return [COSTS[name].kept if name in COSTS else name for name in objectives]


def check_summary(summary: Any) -> None:
    """Raise unless this is the content of a pareto.json.

    Raises:
        SchemaError: something in it is missing, of a wrong type, or contradicts the rest.
    """
    check(summary, _summary_schema())
    costs = [spec.name for spec in known_costs(summary["dense"])]
    check(summary["objectives"], [choice("error", *costs)], "objectives")
    check(summary["targets"], [{"cost": choice(*costs)}], "targets")
    check(summary["reach"], {target["cost"]: (POSITIVE, POSITIVE) for target in summary["targets"]}, "reach")
    check(summary["space"], choice(*summary["spaces"]), "space")
    if summary["objectives"].count("error") != 1 or not 2 <= len(set(summary["objectives"])) == len(summary["objectives"]):
        raise SchemaError(f"objectives must be error and costs, each once, got {summary['objectives']}")
    groups = [group for group, _ in groupby(summary["targets"], key=lambda target: target["group"])]
    if len(summary["best"]) != len(groups) or len(set(groups)) != len(groups):
        raise SchemaError(f"best must have one entry for each of {len(groups)} targets, got {len(summary['best'])}")
    names = {name: _site_names(name, sites) for name, sites in summary["spaces"].items()}
    for index, row in enumerate(summary["front"]):
        check(row, {"space": choice(*names), **dict.fromkeys(costs, POSITIVE)}, f"front[{index}]")
        if row["allocation"].keys() != names[row["space"]]:
            raise SchemaError(f"front[{index}].allocation has not the sites of space {row['space']}")


def _summary_schema() -> dict[str, Any]:
    costs = _of_costs(POSITIVE)
    return {
        "model": TEXT,
        "classes": Maybe(WHOLE),
        "fingerprint": TEXT,
        "space": TEXT,
        "spaces": Each([_SITE]),
        "skipped": [{"name": TEXT, "reason": TEXT}],
        "dense": {**costs, "error": SHARE, "error_finetuned": Maybe(SHARE)},
        "reach": _of_costs((POSITIVE, POSITIVE)),
        "latency?": {"text": TEXT, "error": NUMBER},
        "objectives": [choice("error", *COSTS)],
        "targets": [{"text": TEXT, "cost": choice(*COSTS), "limit": POSITIVE, "group": WHOLE}],
        "states": Each(WHOLE),
        "hypervolume": NUMBER,
        "best": [Maybe(WHOLE)],
        "front": [
            {
                "number": WHOLE, "label": Maybe(TEXT), "space": TEXT, **costs, "error": SHARE, "error_before": Maybe(NUMBER),
                "allocation": Each(SIZE),
            }
        ],
    }  # fmt: skip


def _of_costs(schema: Any) -> dict[str, Any]:
    """The same schema for every cost; measured ones may be missing."""
    return {f"{spec.name}?" if spec.is_measured else spec.name: schema for spec in COSTS.values()}


def _site_names(space: str, sites: Sequence[dict[str, Any]]) -> set[str]:
    names = {site["name"] for site in sites}
    for index, site in enumerate(sites):
        if not site["choices"] or any(low >= high for low, high in pairwise(site["choices"])):
            raise SchemaError(f"spaces.{space}[{index}].choices must ascend, got {site['choices']}")
    if len(names) != len(sites) or not names.isdisjoint((*HEAD, *figure_names(COSTS), *RUNG)):
        raise SchemaError(f"spaces.{space} has two sites of one name, or one that a column of trials.csv has")
    return names


def check_trials(trials: pd.DataFrame, summary: dict[str, Any], sites: Sequence[str]) -> None:
    """Raise unless this is a trials.csv, and one that goes with a pareto.json.

    Args:
        trials: as it was read.
        summary: `check_summary` has checked it.
        sites: names of the sites of all spaces.

    Raises:
        SchemaError: the line, counted as an editor does, and what is wrong in it; or a column that is missing.
    """
    specs = known_costs(summary["dense"])
    costs, shares = [spec.name for spec in specs], [spec.kept for spec in specs]
    names = ["number", *figure_names(costs), *RUNG, *shares, "seed"]
    for column in (*HEAD, *names, "ended", *sites):
        if column not in trials.columns:
            raise SchemaError(f"the column {column} is missing")
    numbers = {column: _numbers(trials, column) for column in (*names, *sites)}
    for column in ("label", "reason"):
        _require(trials, column, trials[column].map(_is_text_or_none), "text")
    _require(trials, "ended", trials["ended"].map(_is_time), "a time, as 2026-11-27T12:00:00+00:00")
    _require(trials, "state", trials["state"].isin(STATES), f"one of {', '.join(STATES)}")
    _require(trials, "space", trials["space"].isin(list(summary["spaces"])), f"one of {', '.join(summary['spaces'])}")
    _require(trials, "number", _is_whole(numbers["number"], 0), "a whole number, 0 or more")
    _require(trials, "number", ~trials["number"].duplicated(), "of one trial alone")
    done, unknown = (trials["state"] == "COMPLETE").to_numpy(), {name: np.isnan(found) for name, found in numbers.items()}
    for column in (*costs, *shares):
        _require(trials, column, ~done | (numbers[column] > 0) & (numbers[column] <= _MOST), "a number above 0")
    _require(trials, "error", ~done | (numbers["error"] >= 0) & (numbers["error"] <= 1), "a number from 0 to 1")
    _require(trials, "seconds", ~done | (numbers["seconds"] >= 0) & (numbers["seconds"] < 1e9), "a number of seconds")
    for site in sites:
        _require(trials, site, (unknown[site] & ~done) | _is_whole(numbers[site], 1), "a whole number above 0")
    known = set(trials["number"][done])
    for number in (*(row["number"] for row in summary["front"]), *summary["best"]):
        if number is not None and number not in known:
            raise SchemaError(f"trial {number} of pareto.json is not there, or has not finished")


def _numbers(trials: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """A column as numbers, NaN where it is empty.

    Raises:
        SchemaError: it holds something else.
    """
    values = trials[column]
    if is_numeric_dtype(values) and not is_bool_dtype(values):
        return values.to_numpy(dtype=float, na_value=np.nan)
    readable = pd.to_numeric(values.astype(object), errors="coerce").notna() & ~is_bool_dtype(values)
    _require(trials, column, values.isna() | (readable if readable.sum() < values.notna().sum() else False), "a number")
    return np.full(len(values), np.nan)


def _require(trials: pd.DataFrame, column: str, holds: Any, name: str) -> None:
    wrong = ~np.asarray(holds, dtype=bool)
    if wrong.any():
        index = int(wrong.argmax())  # an editor counts lines from 1, and the first one has the names
        raise SchemaError(f"line {index + 2}: {column} must be {name}, got {str(trials[column].iloc[index])[:40]!r}")


def _is_whole(numbers: NDArray[np.float64], least: int) -> NDArray[np.bool_]:
    return np.asarray((numbers >= least) & (numbers < 2**53) & (numbers == np.floor(numbers)), dtype=bool)


def _is_text_or_none(value: Any) -> bool:
    return isinstance(value, str) or bool(pd.isna(value))


def _is_time(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        return False
    return found.tzinfo is not None and 1970 < found.year < 9999
