"""The run's own tables: trials.csv, pareto.csv and pareto.json, written after every trial."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from objectives.cost.spec import Cost, known_costs
from objectives.score import figure_names
from search.budgets.targets import Budget
from search.layout import ANOTHER_RUN, RUN_FORMAT, SUMMARY, TRIALS
from search.pareto import best_under, front, hypervolume
from search.run.places import no_run
from search.run.schemas import HEAD, RUNG, check_summary, check_trials, front_columns
from search.trial import DENSE, Trial
from spaces.errors import RunError, first_line
from spaces.files import replacing, write_json
from spaces.format_number import FORMAT, check_format
from spaces.schema import OBJECT, read_json
from spaces.sites import Operator, Site, Skipped, Space


def trial_table(trials: Sequence[Trial], dense: dict[str, Any], sites: Sequence[Site]) -> pd.DataFrame:
    """A row per finished trial, in the order of their numbers.

    Columns: number, state, label, space (of the allocation), reason, the figures of `Score`, rung (the last one that it was
    measured at, in optimiser steps) and rung_error, of every cost that the search knows its share of the dense model's
    (macs_kept), seed, ended (when, ISO 8601 in UTC), and one column per site with its size. Figures of failed trials are NaN,
    as are the final ones of trials stopped at a rung.

    Args:
        trials: in any order.
        dense: figures of the dense model; its costs are those that the search knows.
        sites: of all trials' spaces; a trial has the dense size of those that are not in its own.
    """
    whole = {site.name: site.dense for site in sites}
    costs = known_costs(dense)
    names, shares = figure_names(spec.name for spec in costs), [spec.kept for spec in costs]
    rows = []
    for trial in sorted(trials, key=lambda trial: trial.proposal.number):
        score = trial.score
        figures = {name: None if score is None else score.figure(name) for name in names}
        rungs = score.rungs if score is not None else {}
        reached = dict(zip(RUNG, max(rungs.items(), default=(None, None)), strict=True))
        kept = {spec.kept: _share(figures[spec.name], dense[spec.name]) for spec in costs}
        proposal = trial.proposal
        head = (proposal.number, trial.state, proposal.label, proposal.space, trial.reason)
        sizes = dict.fromkeys(whole) if proposal.allocation is None else {**whole, **proposal.allocation}
        rest = {"seed": proposal.seed, "ended": trial.ended}
        rows.append({**dict(zip(HEAD, head, strict=True)), **figures, **reached, **kept, **rest, **sizes})
    columns = [*HEAD, *names, *RUNG, *shares, "seed", "ended", *whole]
    table = pd.DataFrame(rows, columns=None if rows else columns)
    counts = dict.fromkeys((*(spec.name for spec in costs if spec.is_whole), "steps", "rung", *whole), "Int64")
    numbers = dict.fromkeys((*(name for name in names if name not in counts), "rung_error", *shares), "float64")
    return table.astype({**counts, **numbers})


def _share(value: float | None, dense: float) -> float | None:
    return None if value is None else value / dense


def summarise(
    trials: pd.DataFrame, objectives: Sequence[str], budgets: Sequence[Budget], facts: dict[str, Any]
) -> dict[str, Any]:
    """The content of pareto.json.

    Args:
        trials: `trial_table`.
        objectives: columns to be minimised, "error" first.
        budgets: the targets of this run.
        facts: model, space, dense (its costs and its error), reach, spaces (name -> `describe_space`); copied.

    Returns:
        `facts` and the format's number, objectives, targets, states, front (rows with their allocations), best (the number of
        a trial or None, under every target), and the hypervolume of the front in the unit box: errors as they are, costs as
        shares of the dense model.
    """
    done = trials[trials["state"] == "COMPLETE"].reset_index(drop=True)
    columns, known = front_columns(objectives), (spec.name for spec in known_costs(facts["dense"]))
    names = ("number", "label", "space", *figure_names(known))
    points = [tuple(float(value) for value in row) for row in done[columns].itertuples(index=False)]
    chosen = done.iloc[front(points)].sort_values(next(name for name in columns if name != "error"))
    rows = [
        {
            **{name: _plain(row[name]) for name in names},
            "allocation": {site["name"]: int(row[site["name"]]) for site in facts["spaces"][row["space"]]},
        }
        for _, row in chosen.iterrows()
    ]
    reference = done.loc[done["label"] == DENSE, "error"]
    return {
        FORMAT: RUN_FORMAT,
        **facts,
        "dense": {**facts["dense"], "error_finetuned": float(reference.iloc[0]) if len(reference) else None},
        "objectives": list(objectives),
        "targets": [entry for group, budget in enumerate(budgets) for entry in budget.entries(group)],
        "states": {str(state): int(count) for state, count in trials["state"].value_counts().items()},
        "hypervolume": hypervolume(points, [1.0] * len(columns)),
        "best": [_best_under(done, budget.limits) for budget in budgets],
        "front": rows,
    }


def _best_under(done: pd.DataFrame, limits: Mapping[Cost, float]) -> int | None:
    """Number of the trial of the smallest error within limits."""
    costs = [tuple(row) for row in done[list(limits)].itertuples(index=False)]
    best = best_under(list(done["error"]), costs, list(limits.values()))
    return None if best is None else int(done["number"].iloc[best])


def describe_space(space: Space) -> list[dict[str, Any]]:
    """JSON form of the sites of a space."""
    return [
        {
            "name": site.name, "branch": site.branch, "operator": operator.name, "kind": site.kind,
            "choices": list(site.choices), "linear": list(site.linear) if site.linear else None,
        }
        for rivals in space.branches.values() for operator in rivals for site in operator.sites
    ]  # fmt: skip


def read_space(summary: dict[str, Any], name: str | None = None) -> Space:
    """A space that `describe_space` wrote, by default the searched one, without the model."""
    name = name or summary["space"]
    branches: dict[str, dict[str, list[Site]]] = {}
    for entry in summary["spaces"][name]:
        site = Site(
            name=entry["name"],
            branch=entry["branch"],
            kind=entry["kind"],
            choices=tuple(entry["choices"]),
            linear=tuple(entry["linear"]) if entry["linear"] else None,
        )
        branches.setdefault(site.branch, {}).setdefault(entry["operator"], []).append(site)
    return Space(
        name=name,
        branches={
            branch: tuple(Operator(name=name, sites=tuple(sites)) for name, sites in rivals.items())
            for branch, rivals in branches.items()
        },
        skipped=tuple(Skipped(**entry) for entry in summary["skipped"]),
    )


def sites_of(summary: dict[str, Any]) -> tuple[Site, ...]:
    """The sites of all spaces of a run, each once, the searched space's first."""
    spaces = [read_space(summary, name) for name in summary["spaces"]]
    found: dict[str, Site] = {}
    for space in spaces:
        for site in space.sites:
            found.setdefault(site.name, site)
    return tuple(found.values())


def write_tables(directory: Path, trials: pd.DataFrame, summary: dict[str, Any]) -> None:
    """Write trials.csv, pareto.csv and pareto.json, each atomically."""
    for name, table in ((TRIALS, trials), ("pareto.csv", trials[trials["number"].isin(_numbers(summary))])):
        with replacing(directory / name) as partial:
            table.to_csv(partial, index=False)
    write_json(directory / SUMMARY, summary)


def read_tables(directory: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The trials and the summary of a run, also while a search writes it.

    Raises:
        RunError: there is no run, nothing was written yet, or what was is damaged.
    """
    path = directory / SUMMARY
    try:
        summary = read_summary(directory)
        path = directory / TRIALS
        trials = pd.read_csv(path, low_memory=False)
        check_trials(trials, summary, [site.name for site in sites_of(summary)])
    except FileNotFoundError as error:
        raise no_run(directory, path.name) from error
    except (ValueError, OverflowError) as error:  # pandas' are ValueErrors too
        raise RunError(
            f"the tables of {directory} cannot be read ({path.name}: {first_line(error)}): launch the run again to write them "
            "anew"
        ) from error
    return trials, summary


def read_summary(directory: Path) -> dict[str, Any]:
    """The content of pareto.json.

    Raises:
        OSError: it is not there, or cannot be read.
        RunError: it is damaged, or of another format.
    """
    path = directory / SUMMARY
    try:
        summary: dict[str, Any] = read_json(path, OBJECT)
        check_format(path, summary, RUN_FORMAT, RunError, ANOTHER_RUN)
        check_summary(summary)
    except ValueError as error:
        raise RunError(f"{path} cannot be read ({error}): remove it, and launch the run again to write it anew") from error
    return summary


def _numbers(summary: dict[str, Any]) -> list[int]:
    return [row["number"] for row in summary["front"]]


def _plain(value: Any) -> Any:
    """A pandas scalar as JSON holds it; None for what is missing, or no finite number."""
    if pd.isna(value) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value.item() if hasattr(value, "item") else value
