"""The tables that show an audit, for the terminal and the page."""

from dataclasses import dataclass

from objectives.cost.spec import MAIN
from search.run.audit_file import Audit

# Largest cost over the smallest one, among trials of similar cost.
BAND = 1.1


_COLUMNS = ("trials", "count", "τ short–long", "single seeds", "between long seeds", "τ short–long on test", "by chance")


@dataclass(frozen=True, kw_only=True)
class AuditTable:
    """A table as text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def audit_tables(audit: Audit) -> tuple[AuditTable, ...]:
    """The tables that show an audit: how well the orders agree, then its trials."""
    title = f"Does the short fine-tune rank as one of {audit.factor} times the steps does? Kendall's τ"
    groups = [("along the front", audit.front), (f"of similar cost, within {BAND - 1:.0%}", audit.similar)]
    taus = tuple(
        (
            name,
            str(group.count),
            _with_spread(group.tau),
            _with_spread(group.mean, group.spread),
            _with_spread(group.between_seeds),
            _with_spread(group.test),
            "–" if group.by_chance is None else f"± {group.by_chance:.2f}",
        )
        for name, group in groups
    )
    return AuditTable(title=title, columns=_COLUMNS, rows=taus), _trials(audit)


def _trials(audit: Audit) -> AuditTable:
    short, long = f"expected error, {audit.steps.short} steps", f"error after {audit.steps.long} steps"
    columns = ("trial", "label", f"keeps of {MAIN.word}", "on the front", short, long, f"{long}, test")
    rows = tuple(
        (
            str(point.number),
            point.label or "",
            f"{point.kept[MAIN.name]:.1%}",
            "yes" if point.front else "no",
            f"{point.short:.2%}",
            _with_spread(point.mean, point.spread, "%"),
            _with_spread(point.test_mean, point.test_spread, "%"),
        )
        for point in audit.points
    )
    return AuditTable(title="Trials of the audit", columns=columns, rows=rows)


def _with_spread(value: float | None, spread: float | None = None, unit: str = "") -> str:
    if value is None:
        return "–"
    form = ".2%" if unit else ".2f"
    return format(value, form).replace("-", "−") + (f" ± {format(spread, form)}" if spread is not None else "")
