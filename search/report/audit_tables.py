"""The tables that show an audit, for the terminal and the page."""

from typing import Any

from objectives.cost.spec import MAIN

# Largest cost over the smallest one, among trials of similar cost.
BAND = 1.1


_COLUMNS = ("trials", "count", "τ short–long", "single seeds", "between long seeds", "τ short–long on test", "by chance")


def audit_tables(audit: dict[str, Any]) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Title, column names and rows of the tables that show an audit."""
    steps = audit["steps"]
    short, long = (f"error after {steps[name]} steps" for name in ("short", "long"))
    columns = ("trial", "label", f"keeps of {MAIN.word}", "on the front", short, long, f"{long}, test")
    rows: list[tuple[str, ...]] = [
        (
            str(point["number"]),
            point["label"] or "",
            f"{point[MAIN.kept]:.1%}",
            "yes" if point["front"] else "no",
            f"{point['short']:.2%}",
            _with_spread(point["mean"], point["spread"], "%"),
            _with_spread(point["test_mean"], point["test_spread"], "%"),
        )
        for point in audit["points"]
    ]
    groups = [("along the front", audit["front"]), (f"of similar cost, within {BAND - 1:.0%}", audit["similar"])]
    taus: list[tuple[str, ...]] = [
        (
            name,
            str(group["count"]),
            _with_spread(group["tau"]),
            _with_spread(group["mean"], group["spread"]),
            _with_spread(group["between_seeds"]),
            _with_spread(group["test"]),
            "–" if group["by_chance"] is None else f"± {group['by_chance']:.2f}",
        )
        for name, group in groups
    ]
    title = f"Does the short fine-tune rank as one of {audit['factor']} times the steps does? Kendall's τ"
    return [(title, _COLUMNS, taus), ("Trials of the audit", columns, rows)]


def _with_spread(value: float | None, spread: float | None = None, unit: str = "") -> str:
    if value is None:
        return "–"
    form = ".2%" if unit else ".2f"
    return format(value, form).replace("-", "−") + (f" ± {format(spread, form)}" if spread is not None else "")
