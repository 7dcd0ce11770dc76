"""What the page shows of one run: data for its script, and what its templates read."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from objectives.cost.spec import MAIN
from objectives.profile import Profile
from objectives.units import format_divergence, format_kept
from search.budgets.targets import names_of
from search.report.audit_tables import audit_tables
from search.report.front_plot import Row, costs_of, figure_of, is_finite, reference_of, split_trials
from search.report.history import progress_of
from search.report.site_grid import SHARES, conditions, grid_of
from search.run.edge import lower_edges
from search.run.options import stored_options
from search.run.run import Run
from spaces.errors import CheckpointError
from spaces.sites import Site, Space

Content = dict[str, Any]


def content_of(run: Run, live: bool = False) -> Content:
    """`content` of a run as it is now; what runs is part of it only where it is shown live."""
    return content(
        run.summary,
        run.trials,
        run.sites,
        run=str(run.directory),
        audit=run.audit,
        running=run.running if live else (),
        stderr=run.stderr,
        sensitivity=_sensitivity_of(run),
        options=stored_options(run.directory),
    )


def content(
    summary: dict[str, Any],
    trials: pd.DataFrame,
    sites: Sequence[Site],
    run: str = "RUN",
    audit: dict[str, Any] | None = None,
    running: Sequence[dict[str, Any]] = (),
    stderr: Callable[[int], str] = lambda number: "",
    sensitivity: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Content:
    """All that the page shows of a run, as JSON values.

    Trials that are not COMPLETE, or whose error or counted costs are not finite, are listed and not drawn. Texts of the
    search (model, labels, reasons) are as they are; whoever shows them escapes them.

    Args:
        summary: model, space, objectives, dense figures, targets, states, best and front of the search.
        trials: a row per trial: state, label, reason, error in [0, 1], costs, and one column per site.
        sites: of all spaces of the run, in model order; a trial shows those of its own.
        run: run directory, as the copied export command names it.
        audit: content of audit.json, if there is one.
        running: `search.run.activity.running_of`.
        stderr: number of a failed trial -> what it left.
        sensitivity: `sensitivity_of` the run's profile, if it has one.
        options: that the run was launched with, for the comparison with other runs.

    Returns:
        What the templates read, and under `data` what the script reads.
    """
    points, stopped, failed = split_trials(trials)
    return {
        "run": run,
        "options": options or {},
        "summary": summary,
        "main": {"cost": MAIN.name, "word": MAIN.word},
        "costs": {spec.name: spec.word for spec in costs_of(summary)},
        "bests": _bests(summary, points),
        "edges": _edges(summary, (options or {}).get("band")),
        "reference": reference_of(summary["dense"])[1],
        "dense": _dense(summary),
        "rows": _table(summary, points),
        "running": [{**trial, "error": _number(trial["error"], ".2%")} for trial in running],
        "stopped": [{**row, **_texts(row, summary)} for row in stopped],
        "failed": [{**row, "stderr": stderr(row["number"])} for row in failed],
        "audit": audit_tables(audit) if audit else [],
        "data": _data(summary, points, stopped, sites, run) | {"sensitivity": sensitivity, "csv": trials.to_csv(index=False)},
    }


def sensitivity_of(profile: Profile, space: Space) -> dict[str, Any]:
    """What every site costs by itself, as the page draws it: percent kept -> block -> column -> error, and its conditions."""
    grids = {f"{100 * share:.0f}": grid_of(profile.errors, space, share) for share in SHARES}
    return {"conditions": conditions(profile), "grids": grids}


def _sensitivity_of(run: Run) -> dict[str, Any] | None:
    try:
        return None if run.profile is None else sensitivity_of(run.profile, run.space)
    except CheckpointError:  # whoever needs the profile is told; a search writes its report without
        return None


def _data(summary: Row, points: Sequence[Row], stopped: Sequence[Row], sites: Sequence[Site], run: str) -> dict[str, Any]:
    """What the page's script reads."""
    wanted = [*summary["best"], *(row["number"] for row in sorted(summary["front"], key=lambda row: row[MAIN.name]))]
    shown = {row["number"]: row for row in points}
    costs = costs_of(summary)
    return {
        "sites": [_site(site) for site in sites],
        "spaces": {
            name: [index for index, site in enumerate(sites) if site.name in names] for name, names in _spaces(summary).items()
        },
        "main": MAIN.name,
        "costs": {spec.name: spec.word for spec in costs},
        "points": {
            number: {
                "label": row["label"],
                "space": row["space"],
                "sizes": [int(row[site.name]) for site in sites],
                **_texts(row, summary),
            }
            for number, row in shown.items()
        },
        "figures": {spec.name: figure_of(spec, summary, points, stopped) for spec in costs},
        "stopped": {
            row["number"]: {"reason": row["reason"], "rung": _number(row["rung"], ".0f"), **_texts(row, summary)}
            for row in stopped
        },
        "progress": progress_of(points, summary),
        "chosen": next((number for number in [*wanted, *shown] if number in shown), None),
        "dense": _dense(summary),
        "command": f"python run_search.py export {shlex.quote(run)} --trial ",
    }


def _bests(summary: Row, points: Sequence[Row]) -> list[dict[str, Any]]:
    """The best trial under every target that has one."""
    shown, names = {row["number"]: row for row in points}, names_of(summary["targets"])
    return [
        {
            "under": name if len(names) > 1 else "the target",
            "number": number,
            "keeps": _keeps(_texts(shown[number], summary), summary),
            **_texts(shown[number], summary),
        }
        for name, number in zip(names, summary["best"], strict=True)
        if number in shown
    ]


def _keeps(texts: Mapping[str, str], summary: Row) -> dict[str, str]:
    """Word of a cost -> what a trial keeps of it; a measured cost's amount is there as well."""
    specs = costs_of(summary)
    return {spec.word: f"keeps {texts[spec.kept]}{f', {texts[spec.name]}' if spec.is_measured else ''}" for spec in specs}


def _edges(summary: Row, band: float | None) -> list[str]:
    """Of the best trials that are among the smallest that the search proposes, what to try next."""
    return [] if band is None else [sentence for _, sentence in lower_edges(summary, band)]


def _spaces(summary: Row) -> dict[str, set[str]]:
    """Names of the sites of every space of the run."""
    return {name: {entry["name"] for entry in entries} for name, entries in summary["spaces"].items()}


def _site(site: Site) -> dict[str, Any]:
    """A site's cell in the table of sizes."""
    block, column = site.place
    return {"name": site.name, "block": block, "column": column, "kind": site.kind, "dense": site.dense}


def _table(summary: Row, points: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows of the page's table: the front from its cheapest point, then the baselines that are not on it."""
    front = {row["number"] for row in summary["front"]}
    rows = sorted(points, key=lambda row: (row["number"] not in front, row[MAIN.name], row["number"]))
    wanted = [row for row in rows if row["number"] in front or row["label"]]
    return [{**row, "is_front": row["number"] in front, **_texts(row, summary)} for row in wanted]


def _dense(summary: Row) -> str:
    return _number(reference_of(summary["dense"])[0], ".2%")


def _texts(row: Row, summary: Row) -> dict[str, str]:
    """The figures of one trial as text; '–' for a figure that it does not have."""
    reference, _ = reference_of(summary["dense"])
    texts = {
        "before": _number(row["error_before"], ".2%"),
        "error": _number(row["error"], ".2%"),
        "ratio": f"×{row['error'] / reference:.2f}" if reference > 0 else "–",
        "kl": f"{_divergence(row.get('kl_before'))} → {_divergence(row.get('kl'))}",
        "time": f"{_number(row.get('seconds'), '.0f')} s, seed {_number(row.get('seed'), '.0f')}",
    }
    for spec in costs_of(summary):
        texts |= dict.fromkeys((spec.name, spec.kept), "–")
        if is_finite(value := row.get(spec.name)):
            texts[spec.name] = _text(spec.format(value))
            texts[spec.kept] = _text(format_kept(value / summary["dense"][spec.name]))
    return texts


def _number(value: Any, form: str) -> str:
    return format(value, form).replace("%", "\u00a0%") if is_finite(value) else "–"


def _divergence(value: Any) -> str:
    return format_divergence(value) if is_finite(value) else "–"


def _text(text: str) -> str:
    """With spaces that do not break a line between a number and its unit."""
    return text.replace(" ", "\u00a0").replace("\u00a0(", " (")
