"""trials.csv as a pandas table: made of trials, checked, and read back as trials."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from objectives.cost.spec import CostSpec
from objectives.score import figure_names
from search.evidence.intervals import Interval
from search.run.finished_trial import FinishedTrial
from search.run.summary import RunSummary
from spaces.allocation import Allocation
from spaces.schema import SchemaError
from spaces.sites import Site, Space

HEAD = ("number", "state", "label", "space", "reason")
RUNG = ("rung", "rung_error")
EXPECTED = ("expected", "expected_low", "expected_high")
STATES = ("COMPLETE", "PRUNED", "FAIL")

_MOST = 1e18  # of any cost


def trial_table(trials: Sequence[FinishedTrial], costs: Sequence[CostSpec], sites: Sequence[Site]) -> pd.DataFrame:
    """A row per trial.

    Columns: number, state, label, space (of the allocation), reason, the figures of `Score`, rung (the last one that it was
    measured at, in optimiser steps) and rung_error, of every cost its share of the dense model's (macs_kept), seed, repeats
    (number of the first trial of the same allocation), ended (when, ISO 8601 in UTC), one column per site with its size, and
    the expected error with the ends of its interval. Figures of failed trials are NaN, as are the final ones of trials stopped
    at a rung.

    Args:
        trials: in the order of the rows.
        costs: that the search knows.
        sites: of all trials' spaces; a trial has the dense size of those that are not in its own.
    """
    names, shares = figure_names(spec.name for spec in costs), [spec.kept for spec in costs]
    columns = [*HEAD, *names, *RUNG, *shares, "seed", "repeats", "ended", *(site.name for site in sites), *EXPECTED]
    rows = [_row(trial, costs, sites) for trial in trials]
    table = pd.DataFrame(rows, columns=None if rows else columns)
    counts = (
        *(spec.name for spec in costs if spec.is_whole),
        "steps",
        "kept_step",
        "rung",
        "repeats",
        *(site.name for site in sites),
    )
    numbers = (*(name for name in names if name not in counts), "rung_error", *shares, *EXPECTED)
    return table.astype({**dict.fromkeys(counts, "Int64"), **dict.fromkeys(numbers, "float64")})


def csv_lines(table: pd.DataFrame) -> list[str]:
    """A table as CSV: the line of the columns' names, and a text per row, each with its line end."""
    lines = [f"{line}\n" for line in table.to_csv(index=False, lineterminator="\n").split("\n")[:-1]]
    if len(lines) == len(table) + 1:
        return lines
    rows = (table[row : row + 1] for row in range(len(table)))  # where a reason has several lines
    return [lines[0], *(row.to_csv(index=False, header=False, lineterminator="\n") for row in rows)]


def trials_of(table: pd.DataFrame, summary: RunSummary) -> tuple[FinishedTrial, ...]:
    """The trials of a table that `check_trials` has checked, in the order of its rows."""
    return tuple(_trial(row, summary.costs, summary.spaces) for row in table.to_dict("records"))


def check_trials(trials: pd.DataFrame, summary: RunSummary) -> None:
    """Raise unless this is a trials.csv, and one that goes with a pareto.json.

    Args:
        trials: as it was read.
        summary: of the run.

    Raises:
        SchemaError: the line, counted as an editor does, and what is wrong in it; or a column that is missing.
    """
    costs, shares = [spec.name for spec in summary.costs], [spec.kept for spec in summary.costs]
    names = ["number", *figure_names(costs), *RUNG, *shares, "seed", "repeats", *EXPECTED]
    sites = {site.name: site.choices[0] for site in summary.sites}
    for column in (*HEAD, *names, "ended", *sites):
        if column not in trials.columns:
            raise SchemaError(f"the column {column} is missing")
    numbers = {column: _numbers(trials, column) for column in (*names, *sites)}
    for column in ("label", "reason"):
        _require(trials, column, trials[column].map(_is_text_or_none), "text")
    _require(trials, "ended", trials["ended"].map(_is_time), "a time, as 2026-11-27T12:00:00+00:00")
    _require(trials, "state", trials["state"].isin(STATES), f"one of {', '.join(STATES)}")
    _require(trials, "space", trials["space"].isin(list(summary.spaces)), f"one of {', '.join(summary.spaces)}")
    _require(trials, "number", _is_whole(numbers["number"], 0), "a whole number, 0 or more")
    _require(trials, "number", ~trials["number"].duplicated(), "of one trial alone")
    done, unknown = (trials["state"] == "COMPLETE").to_numpy(), {name: np.isnan(found) for name, found in numbers.items()}
    for column in (*costs, *shares):
        _require(trials, column, ~done | (numbers[column] > 0) & (numbers[column] <= _MOST), "a number above 0")
    _require(trials, "error", ~done | (numbers["error"] >= 0) & (numbers["error"] <= 1), "a number from 0 to 1")
    _require(trials, "seconds", ~done | (numbers["seconds"] >= 0) & (numbers["seconds"] < 1e9), "a number of seconds")
    for site, least in sites.items():
        wanted = "a whole number above 0" if least else "a whole number, 0 or more"
        _require(trials, site, (unknown[site] & ~done) | _is_whole(numbers[site], min(1, least)), wanted)
    known = set(trials["number"][done])
    for number in (*(point.number for point in summary.front), *summary.best):
        if number is not None and number not in known:
            raise SchemaError(f"trial {number} of pareto.json is not there, or has not finished")


def _row(trial: FinishedTrial, costs: Sequence[CostSpec], sites: Sequence[Site]) -> dict[str, Any]:
    sizes = trial.allocation
    return {
        "number": trial.number,
        "state": trial.state,
        "label": trial.label,
        "space": trial.space,
        "reason": trial.reason,
        "error": trial.error,
        "error_before": trial.error_before,
        "kl": trial.kl,
        "kl_before": trial.kl_before,
        "cross_entropy": trial.cross_entropy,
        **{spec.name: trial.costs.get(spec.name) for spec in costs},
        "steps": trial.steps,
        "kept_step": trial.kept_step,
        "seconds": trial.seconds,
        "rung": trial.rung,
        "rung_error": trial.rung_error,
        **{spec.kept: trial.kept.get(spec.name) for spec in costs},
        "seed": trial.seed,
        "repeats": trial.repeats,
        "ended": trial.ended,
        **{site.name: sizes.get(site.name, site.dense) if sizes else None for site in sites},
        **dict(zip(EXPECTED, _ends(trial.expected), strict=True)),
    }


def _trial(row: Mapping[Any, Any], costs: Sequence[CostSpec], spaces: Mapping[str, Space]) -> FinishedTrial:
    sizes = {site.name: _whole(row[site.name]) for site in spaces[row["space"]].all_sites}
    known = {name: size for name, size in sizes.items() if size is not None}
    figures = {spec.name: _amount(row[spec.name], spec) for spec in costs}
    shares = {spec.name: _number(row[spec.kept]) for spec in costs}
    return FinishedTrial(
        number=int(row["number"]),
        state=row["state"],
        label=_text(row["label"]),
        space=row["space"],
        reason=_text(row["reason"]),
        error=_number(row["error"]),
        error_before=_number(row["error_before"]),
        kl=_number(row["kl"]),
        kl_before=_number(row["kl_before"]),
        cross_entropy=_number(row["cross_entropy"]),
        costs={cost: value for cost, value in figures.items() if value is not None},
        kept={cost: value for cost, value in shares.items() if value is not None},
        steps=_whole(row["steps"]),
        kept_step=_whole(row["kept_step"]),
        seconds=_number(row["seconds"]),
        rung=_whole(row["rung"]),
        rung_error=_number(row["rung_error"]),
        seed=_whole(row["seed"]),
        ended=row["ended"],
        allocation=Allocation(known if len(known) == len(sizes) else {}),
        repeats=_whole(row["repeats"]),
        expected=_interval(*(_number(row[name]) for name in EXPECTED)),
    )


def _ends(expected: Interval | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if expected is None else (expected.mean, expected.low, expected.high)


def _interval(mean: float | None, low: float | None, high: float | None) -> Interval | None:
    if mean is None or low is None or high is None:
        return None
    return Interval(mean=mean, low=low, high=high)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    return None if _is_missing(value) else float(value)


def _whole(value: Any) -> int | None:
    return None if _is_missing(value) or not math.isfinite(value) else int(value)


def _amount(value: Any, spec: CostSpec) -> float | None:
    """Counts are whole again: a column that lacks some has floats."""
    found = _number(value)
    return int(found) if found is not None and spec.is_whole and found.is_integer() else found


def _is_missing(value: Any) -> bool:
    return value is None or value != value


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
