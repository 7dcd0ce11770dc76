"""pareto.json: how a summary is written, and read back and checked. Only here is it JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, get_args

from objectives.cost.spec import COSTS, known_costs
from objectives.objective import SplitBefore
from objectives.score import figure_names
from search.budgets.targets import Budget, parse_target
from search.evidence.intervals import Interval
from search.evidence.options import Preference
from search.evidence.settled import Worth
from search.layout import ANOTHER_RUN, RUN_FORMAT, SUMMARY
from search.run.summary import Best, DenseFigures, FrontPoint, LatencySource, RunSummary
from search.run.trial_table import HEAD, RUNG
from spaces.allocation import Allocation
from spaces.errors import RunError, TargetError
from spaces.files import write_json
from spaces.format_number import FORMAT, check_format
from spaces.schema import (
    FLAG,
    NUMBER,
    OBJECT,
    POSITIVE,
    SHARE,
    SIZE,
    TEXT,
    WHOLE,
    Each,
    Maybe,
    SchemaError,
    check,
    choice,
    read_json,
)
from spaces.sites import Kind as SiteKind
from spaces.sites import Operator, Site, Skipped, Space

_SITE = {
    "name": TEXT, "branch": TEXT, "operator": TEXT, "kind": choice(*get_args(SiteKind)), "choices": [WHOLE],
    "linear": Maybe((SIZE, SIZE)),
}  # fmt: skip
_INTERVAL = {"mean": NUMBER, "low": NUMBER, "high": NUMBER}
_MERGE = "merge"  # in place of the operator of sites of tokens, which act on all branches


def write_summary(directory: Path, summary: RunSummary) -> None:
    """Write pareto.json."""
    write_json(directory / SUMMARY, summary_to_json(summary))


def read_summary(directory: Path) -> RunSummary:
    """The summary in pareto.json.

    Raises:
        OSError: it is not there, or cannot be read.
        RunError: it is damaged, or of another format.
    """
    path = directory / SUMMARY
    try:
        content = read_json(path, OBJECT)
        check_format(path, content, RUN_FORMAT, RunError, ANOTHER_RUN)
        return summary_from_json(content)
    except ValueError as error:
        raise RunError(f"{path} cannot be read ({error}): remove it, and launch the run again to write it anew") from error


def summary_to_json(summary: RunSummary) -> dict[str, Any]:
    """The content of pareto.json."""
    dense = summary.dense
    return {
        FORMAT: RUN_FORMAT,
        "model": summary.model,
        "classes": summary.classes,
        "fingerprint": summary.fingerprint,
        "space": summary.space,
        "spaces": {name: _space_to_json(space) for name, space in summary.spaces.items()},
        "skipped": [asdict(entry) for entry in summary.spaces[summary.space].skipped],
        "dense": {
            **dense.costs,
            "error": dense.error,
            "error_finetuned": dense.error_finetuned,
            "images": dense.images,
            "tested": dense.tested,
            "expected": None if dense.expected is None else asdict(dense.expected),
        },
        "split_before": summary.split_before,
        "reach": {cost: list(ends) for cost, ends in summary.reach.items()},
        **({"latency": asdict(summary.latency)} if summary.latency else {}),
        "objectives": list(summary.objectives),
        "prefer": summary.prefer,
        "targets": [entry for group, budget in enumerate(summary.targets) for entry in _budget_to_json(budget, group)],
        "states": dict(summary.states),
        "hypervolume": summary.hypervolume,
        "best": [None if best is None else asdict(best) for best in summary.bests],
        "front": [_point_to_json(point) for point in summary.front],
        "worth": None if summary.worth is None else asdict(summary.worth),
    }


def summary_from_json(content: Any) -> RunSummary:
    """Inverse of `summary_to_json`.

    Raises:
        SchemaError: something is missing, of a wrong type, or contradicts the rest.
    """
    _check(content)
    costs = [spec.name for spec in known_costs(content["dense"])]
    dense, skipped = content["dense"], _skipped(content["skipped"])
    return RunSummary(
        model=content["model"],
        classes=content["classes"],
        fingerprint=content["fingerprint"],
        space=content["space"],
        spaces={name: _space(name, sites, skipped) for name, sites in content["spaces"].items()},
        dense=DenseFigures(
            costs={cost: dense[cost] for cost in costs},
            error=dense["error"],
            error_finetuned=dense["error_finetuned"],
            images=dense["images"],
            tested=dense["tested"],
            expected=_interval(dense["expected"]),
        ),
        split_before=content["split_before"],
        reach={cost: (least, most) for cost, (least, most) in content["reach"].items()},
        latency=_latency(content.get("latency")),
        objectives=tuple(content["objectives"]),
        prefer=content["prefer"],
        targets=tuple(_budget(group) for group in _groups(content)),
        states=content["states"],
        hypervolume=content["hypervolume"],
        bests=tuple(map(_best, content["best"])),
        front=tuple(_point(entry, costs) for entry in content["front"]),
        worth=None if content["worth"] is None else Worth(**content["worth"]),
    )


def _best(entry: Mapping[str, Any] | None) -> Best | None:
    if entry is None:
        return None
    return Best(
        number=entry["number"],
        tied=tuple(entry["tied"]),
        among=entry["among"],
        start=entry["start"],
        gained=_interval(entry["gained"]),
        lost=_interval(entry["lost"]),
    )


def _interval(entry: Mapping[str, float] | None) -> Interval | None:
    return None if entry is None else Interval(**entry)


def _skipped(entries: Sequence[Mapping[str, Any]]) -> tuple[Skipped, ...]:
    return tuple(Skipped(name=entry["name"], reason=entry["reason"]) for entry in entries)


def _latency(found: Mapping[str, Any] | None) -> LatencySource | None:
    return None if found is None else LatencySource(text=found["text"], error=found["error"])


def _space_to_json(space: Space) -> list[dict[str, Any]]:
    branches = space.branches.values()
    sites = [(operator.name, site) for rivals in branches for operator in rivals for site in operator.sites]
    return [
        {
            "name": site.name, "branch": site.branch, "operator": operator, "kind": site.kind,
            "choices": list(site.choices), "linear": list(site.linear) if site.linear else None,
        }
        for operator, site in (*sites, *((_MERGE, site) for site in space.tokens))
    ]  # fmt: skip


def _space(name: str, sites: Sequence[Mapping[str, Any]], skipped: tuple[Skipped, ...]) -> Space:
    """A space, without the model."""
    branches: dict[str, dict[str, list[Site]]] = {}
    tokens = []
    for entry in sites:
        site = Site(
            name=entry["name"],
            branch=entry["branch"],
            kind=entry["kind"],
            choices=tuple(entry["choices"]),
            linear=tuple(entry["linear"]) if entry["linear"] else None,
        )
        if site.kind == "tokens":
            tokens.append(site)
        else:
            branches.setdefault(site.branch, {}).setdefault(entry["operator"], []).append(site)
    rivals = {
        branch: tuple(Operator(name=name, sites=tuple(sites)) for name, sites in operators.items())
        for branch, operators in branches.items()
    }
    return Space(name=name, branches=rivals, tokens=tuple(tokens), skipped=skipped)


def _budget_to_json(budget: Budget, group: int) -> list[dict[str, Any]]:
    """An entry for every bound; those of one target have the same group."""
    return [
        {"text": bound.text, "cost": bound.cost, "limit": budget.limits[bound.cost], "group": group} for bound in budget.bounds
    ]


def _groups(content: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """The entries of every target."""
    return [list(group) for _, group in groupby(content["targets"], key=lambda entry: entry["group"])]


def _budget(entries: Sequence[Mapping[str, Any]]) -> Budget:
    try:
        target = parse_target(",".join(entry["text"] for entry in entries))
    except TargetError as error:
        raise SchemaError(f"targets: {error}") from error
    if list(target.costs) != [entry["cost"] for entry in entries]:
        raise SchemaError(f"targets: {target.text!r} is not on {' and '.join(entry['cost'] for entry in entries)}")
    return Budget(target=target, bounds=target.bounds, limits={entry["cost"]: entry["limit"] for entry in entries})


def _point_to_json(point: FrontPoint) -> dict[str, Any]:
    names = figure_names(point.costs)
    figures = {name: point.costs[name] if name in COSTS else getattr(point, name) for name in names}
    return {
        "number": point.number,
        "label": point.label,
        "space": point.space,
        **{name: value if value is not None and math.isfinite(value) else None for name, value in figures.items()},
        "allocation": dict(point.allocation),
        "expected": None if point.expected is None else asdict(point.expected),
    }


def _point(entry: Mapping[str, Any], costs: Sequence[str]) -> FrontPoint:
    return FrontPoint(
        number=entry["number"],
        label=entry["label"],
        space=entry["space"],
        error=entry["error"],
        error_before=entry["error_before"],
        kl=entry["kl"],
        kl_before=entry["kl_before"],
        cross_entropy=entry["cross_entropy"],
        costs={cost: entry[cost] for cost in costs},
        steps=entry["steps"],
        kept_step=entry["kept_step"],
        seconds=entry["seconds"],
        allocation=Allocation(entry["allocation"]),
        expected=_interval(entry["expected"]),
    )


def _check(content: Any) -> None:
    check(content, _schema())
    costs = [spec.name for spec in known_costs(content["dense"])]
    check(content["objectives"], [choice("error", *costs)], "objectives")
    check(content["targets"], [{"cost": choice(*costs)}], "targets")
    check(content["reach"], {target["cost"]: (POSITIVE, POSITIVE) for target in content["targets"]}, "reach")
    check(content["space"], choice(*content["spaces"]), "space")
    if content["objectives"].count("error") != 1 or not 2 <= len(set(content["objectives"])) == len(content["objectives"]):
        raise SchemaError(f"objectives must be error and costs, each once, got {content['objectives']}")
    groups = [group[0]["group"] for group in _groups(content)]
    if len(content["best"]) != len(groups) or len(set(groups)) != len(groups):
        raise SchemaError(f"best must have one entry for each of {len(groups)} targets, got {len(content['best'])}")
    least = {name: _least_sizes(name, sites) for name, sites in content["spaces"].items()}
    for index, point in enumerate(content["front"]):
        check(point, {"space": choice(*least), **dict.fromkeys(costs, POSITIVE)}, f"front[{index}]")
        sites = least[point["space"]]
        if point["allocation"].keys() != sites.keys():
            raise SchemaError(f"front[{index}].allocation has not the sites of space {point['space']}")
        check(point["allocation"], {site: SIZE if sites[site] else WHOLE for site in sites}, f"front[{index}].allocation")


def _schema() -> dict[str, Any]:
    costs = _of_costs(POSITIVE)
    figures = dict.fromkeys(("error_before", "kl", "kl_before", "cross_entropy", "seconds"), Maybe(NUMBER))
    return {
        "model": TEXT,
        "classes": Maybe(WHOLE),
        "fingerprint": TEXT,
        "space": TEXT,
        "spaces": Each([_SITE]),
        "skipped": [{"name": TEXT, "reason": TEXT}],
        "dense": {
            **costs, "error": SHARE, "error_finetuned": Maybe(SHARE), "images": WHOLE, "tested": WHOLE,
            "expected": Maybe(_INTERVAL),
        },
        "split_before": choice(*get_args(SplitBefore)),
        "reach": _of_costs((POSITIVE, POSITIVE)),
        "latency?": {"text": TEXT, "error": NUMBER},
        "objectives": [choice("error", *COSTS)],
        "prefer": choice(*get_args(Preference)),
        "targets": [{"text": TEXT, "cost": choice(*COSTS), "limit": POSITIVE, "group": WHOLE}],
        "states": Each(WHOLE),
        "hypervolume": NUMBER,
        "worth": Maybe({"gain": NUMBER, "known_to": NUMBER, "settled": FLAG}),
        "best": [
            Maybe({
                "number": WHOLE, "tied": [WHOLE], "among": WHOLE, "start": Maybe(WHOLE),
                "gained": Maybe(_INTERVAL), "lost": Maybe(_INTERVAL),
            })
        ],
        "front": [
            {
                "number": WHOLE, "label": Maybe(TEXT), "space": TEXT, **costs, "error": SHARE, **figures,
                "steps": Maybe(WHOLE), "kept_step": Maybe(WHOLE), "allocation": Each(WHOLE), "expected": Maybe(_INTERVAL),
            }
        ],
    }  # fmt: skip


def _of_costs(schema: Any) -> dict[str, Any]:
    """The same schema for every cost; measured ones may be missing."""
    return {f"{spec.name}?" if spec.is_measured else spec.name: schema for spec in COSTS.values()}


def _least_sizes(space: str, sites: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Site -> its smallest size."""
    for index, site in enumerate(sites):
        if not site["choices"] or any(low >= high for low, high in pairwise(site["choices"])):
            raise SchemaError(f"spaces.{space}[{index}].choices must ascend, got {site['choices']}")
    least = {site["name"]: site["choices"][0] for site in sites}
    if len(least) != len(sites) or not least.keys().isdisjoint((*HEAD, *figure_names(COSTS), *RUNG)):
        raise SchemaError(f"spaces.{space} has two sites of one name, or one that a column of trials.csv has")
    return least
