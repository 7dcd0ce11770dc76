"""Columns of costs in the terminal's tables: as many as fit beside each other."""

from collections.abc import Mapping
from typing import Any

from objectives.cost.closed_form import COSTS, Cost
from search.budgets.targets import WORDS, format_amount, format_kept


def cost_columns(dense: Mapping[str, Any]) -> list[str]:
    """Their titles.

    Args:
        dense: figures of the dense model; MACs and parameters are shown as shares alone where latency is known.
    """
    return [name for cost in _known(dense) for name in (*_amounts(cost, dense, WORDS[cost]), f"keeps of {WORDS[cost]}")]


def cost_cells(figures: Mapping[Any, Any], dense: Mapping[str, Any]) -> list[str]:
    """The texts of one model; empty for a cost that it does not have."""
    texts = []
    for cost in _known(dense):
        value = figures.get(cost)
        texts += _amounts(cost, dense, "" if value is None else format_amount(cost, value))
        texts.append("" if value is None else format_kept(value / dense[cost]))
    return texts


def _known(dense: Mapping[str, Any]) -> list[Cost]:
    return [cost for cost in COSTS if cost in dense]


def _amounts(cost: Cost, dense: Mapping[str, Any], text: str) -> list[str]:
    """`text`, where the cost has a column of its own for amounts."""
    return [text] if cost == "latency" or "latency" not in dense else []
