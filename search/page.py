"""The page that shows a run: the front, its allocations, what runs and what went wrong. One file that requests nothing.

It is written as report.html (search/report.py), and served while a search runs (search/serve.py): the same page, whose script
then asks for new content.
"""

import base64
import hashlib
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from search.agreement import audit_tables
from search.course import progress_of
from search.figure import COSTS, Row, figure_of, is_finite, reference_of, split_trials
from search.run import Run
from search.targets import format_count, format_kept, names_of
from spaces.sites import Site

_TEMPLATES = Path(__file__).with_name("templates")
_PARTS = ("head", "rows", "notes")  # of the page, by the ids of their elements; each has a template


def content_of(run: Run, live: bool = False) -> dict[str, Any]:
    """`content` of a run as it is now; what runs is part of it only where it is shown live."""
    name, running = str(run.directory), run.running if live else ()
    return content(run.summary, run.trials, run.sites, run=name, audit=run.audit, running=running, stderr=run.stderr)


def content(
    summary: dict[str, Any],
    trials: pd.DataFrame,
    sites: Sequence[Site],
    run: str = "RUN",
    audit: dict[str, Any] | None = None,
    running: Sequence[dict[str, Any]] = (),
    stderr: Callable[[int], str] = lambda number: "",
) -> dict[str, Any]:
    """All that changes on the page, as JSON values.

    Trials that are not COMPLETE, or whose error, MACs or parameters are not finite, are listed and not drawn. With
    no trial left the page says so. Any text of the search (model, labels, reasons) is shown as text, never as markup.

    Args:
        summary: model, space, objectives, dense figures, targets, states, best and front of the search.
        trials: a row per trial: state, label, reason, error in [0, 1], costs, and one column per site.
        sites: of all spaces of the run, in model order; a trial shows those of its own.
        run: run directory, as the copied export command names it.
        audit: content of audit.json, if there is one.
        running: `search.running.running_of`.
        stderr: number of a failed trial -> what it left.

    Returns:
        title; data, which the page's script reads, None without a trial to draw; parts, element id -> HTML.
    """
    points, stopped, failed = split_trials(trials)
    data = {**_data(summary, points, stopped, sites, run), "csv": trials.to_csv(index=False)} if points else None
    shown = {
        "summary": summary,
        "data": data,
        "bests": _bests(summary, points),
        "reference": reference_of(summary["dense"])[1],
        "rows": _table(summary, points),
        "running": [{**trial, "error": _number(trial["error"], ".2%")} for trial in running],
        "stopped": [{**row, **_texts(row, summary)} for row in stopped],
        "failed": [{**row, "stderr": stderr(row["number"])} for row in failed],
        "audit": audit_tables(audit) if audit else [],
    }
    templates = _environment()
    parts = {name: templates.get_template(f"{name}.html.j2").render(shown) for name in _PARTS}
    return {"title": f"{summary['model']}: front of error and MACs", "data": data, "parts": parts}


def waiting(run: str, reason: str) -> dict[str, Any]:
    """The content of the page of a run that cannot be read, or not yet."""
    head = _environment().get_template("waiting.html.j2").render(run=run, reason=reason)
    return {"title": run, "data": None, "parts": {"head": head, "rows": "", "notes": ""}}


def page(content: dict[str, Any], live: bool = False) -> str:
    """The whole page.

    Args:
        content: of `content`.
        live: whether its script asks for new content, at content.json beside the page, every two seconds.
    """
    names = [*(["page.js"] if live or content["data"] else []), *(["live.js"] if live else [])]
    scripts = [get_plotlyjs(), *map(_read, names)] if names else []
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=content["title"],
            data=content["data"],
            parts={name: Markup(html) for name, html in content["parts"].items()},
            live=live,
            style=Markup(_read("page.css")),
            scripts=[Markup(text) for text in scripts],
            # Only these scripts may run, so markup that slipped through could not.
            policy=" ".join(_digest(text) for text in scripts) or "'none'",
        )
    )


def _data(
    summary: Row, points: list[dict[str, Any]], stopped: list[dict[str, Any]], sites: Sequence[Site], run: str
) -> dict[str, Any]:
    """What the page's script reads."""
    wanted = [*summary["best"], *(row["number"] for row in sorted(summary["front"], key=lambda row: row["macs"]))]
    shown = {row["number"]: row for row in points}
    reference, _ = reference_of(summary["dense"])
    return {
        "sites": [_site(site) for site in sites],
        "spaces": {
            name: [index for index, site in enumerate(sites) if site.name in names] for name, names in _spaces(summary).items()
        },
        "points": {
            number: {
                "label": row["label"],
                "space": row.get("space", ""),
                "sizes": [int(row[site.name]) for site in sites],
                **_texts(row, summary),
            }
            for number, row in shown.items()
        },
        "figures": {cost: figure_of(cost, summary, points, stopped) for cost in COSTS},
        "stopped": {
            row["number"]: {"reason": row["reason"], "rung": _number(row.get("rung"), ".0f"), **_texts(row, summary)}
            for row in stopped
        },
        "progress": progress_of(points, summary),
        "chosen": next((number for number in wanted if number in shown), points[0]["number"]),
        "dense": _number(reference, ".2%"),
        "command": f"python run_search.py export {shlex.quote(run)} --trial ",
    }


def _bests(summary: Row, points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best trial under every target that has one."""
    shown, names = {row["number"]: row for row in points}, names_of(summary["targets"])
    return [
        {"under": name if len(names) > 1 else "the target", "number": number, **_texts(shown[number], summary)}
        for name, number in zip(names, summary["best"], strict=True)
        if number in shown
    ]


def _spaces(summary: Row) -> dict[str, set[str]]:
    """Names of the sites of every space of the run."""
    return {name: {entry["name"] for entry in entries} for name, entries in summary.get("spaces", {}).items()}


def _site(site: Site) -> dict[str, Any]:
    """A site's cell in the table of sizes."""
    block, column = site.place
    return {"name": site.name, "block": block, "column": column, "kind": site.kind, "dense": site.dense}


def _table(summary: Row, points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the page's table: the front from its cheapest point, then the baselines that are not on it."""
    front = {row["number"] for row in summary["front"]}
    rows = sorted(points, key=lambda row: (row["number"] not in front, row["macs"], row["number"]))
    wanted = [row for row in rows if row["number"] in front or row["label"]]
    return [{**row, "is_front": row["number"] in front, **_texts(row, summary)} for row in wanted]


def _texts(row: Row, summary: Row) -> dict[str, str]:
    """The figures of one trial as text; '–' for a figure that it does not have."""
    dense = summary["dense"]
    reference, _ = reference_of(dense)
    return {
        "macs_kept": _text(format_kept(row["macs"] / dense["macs"])),
        "params_kept": _text(format_kept(row["params"] / dense["params"])),
        "macs": _text(format_count(row["macs"])),
        "params": _text(format_count(row["params"])),
        "before": _number(row.get("error_before"), ".2%"),
        "error": _number(row["error"], ".2%"),
        "ratio": f"×{row['error'] / reference:.2f}" if reference > 0 else "–",
        "kl": f"{_number(row.get('kl_before'), '.3f')} → {_number(row.get('kl'), '.3f')}",
        "time": f"{_number(row.get('seconds'), '.0f')} s, seed {_number(row.get('seed'), '.0f')}",
    }


def _number(value: Any, form: str) -> str:
    return format(value, form).replace("%", "\u00a0%") if is_finite(value) else "–"


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(_TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "ensure_ascii": False, "separators": (",", ":")}
    return environment


def _text(text: str) -> str:
    """With spaces that do not break a line between a number and its unit."""
    return text.replace(" ", "\u00a0").replace("\u00a0(", " (")
