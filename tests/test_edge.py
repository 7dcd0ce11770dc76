"""A best trial among the smallest that a search proposes is said to be, with the target to try next."""

from dataclasses import replace

import pytest
from local_pages import DENSE, made_up
from local_tables import bests_of, budget_of, pointed, summary_of

from search.budgets.targets import Budget
from search.report.html import assemble, page
from search.report.page_data import content
from search.run.edge import lower_edges
from search.run.summary import FrontPoint, RunSummary
from search.run.trial_table import trials_of

HALF = budget_of(("macs", 500.0, "flops=50%"))


def summary(targets: list[Budget], front: list[FrontPoint], best: list[int | None], least: float = 10.0) -> RunSummary:
    reach = {"macs": (least, 1000), "params": (least / 5, 200)}
    dense = {"macs": 1000, "params": 200}
    return summary_of(dense, reach=reach, targets=tuple(targets), front=tuple(front), bests=bests_of(best))


def row(number: int, macs: float, params: float = 200) -> FrontPoint:
    return pointed(number, {"macs": macs, "params": params})


@pytest.mark.parametrize(("macs", "found"), [(250, True), (254, True), (262, True), (263, False), (400, False), (500, False)])
def test_it_lies_within_a_twentieth_of_the_band_from_its_end(macs: float, found: bool) -> None:
    """Of a target of 500 and a band of a half: from 250 to 500, and so up to 262.5."""
    assert bool(list(lower_edges(summary([HALF], [row(7, macs)], [7]), 0.5))) is found


def test_the_sentence_names_the_trial_what_it_uses_and_what_to_try() -> None:
    ((number, sentence),) = lower_edges(summary([HALF], [row(7, 254)], [7]), 0.5)
    assert number == 7
    assert sentence.startswith(
        "trial 7, the best under flops=50%, uses 50.8% of it, and this search proposes nothing below 50%"
    )
    assert "try --target flops=25% with another --output" in sentence


def test_a_target_in_units_and_two_bounds() -> None:
    target = budget_of(("macs", 500.0, "flops=500"), ("params", 100.0, "params=50%"))
    ((_, sentence),) = lower_edges(summary([target], [row(3, 100, 41)], [3]), 0.4)
    assert "the best under flops=500 and params=50%, uses 41.0% of it" in sentence
    assert "--target flops=20%,params=20% " in sentence
    assert not list(lower_edges(summary([target], [row(3, 400, 41)], [3]), 0.4)), "the fuller of two bounds counts"


def test_nothing_is_said_where_there_is_nothing_to_try() -> None:
    assert not list(lower_edges(summary([], [row(7, 254)], []), 0.5)), "no target"
    assert not list(lower_edges(summary([HALF], [row(7, 254)], [None]), 0.5)), "no trial"
    assert not list(lower_edges(summary([HALF], [row(7, 254)], [9]), 0.5)), "off the front"
    assert not list(lower_edges(summary([HALF], [row(7, 254)], [7], least=252.0), 0.5)), "the space ends there"
    two = [HALF, budget_of(("macs", 300.0, "flops=30%"))]
    rows = [row(7, 254), row(8, 160)]
    assert [number for number, _ in lower_edges(summary(two, rows, [7, 8]), 0.5)] == [], "8 is not at its edge"
    rows = [row(7, 254), row(8, 151)]
    assert [number for number, _ in lower_edges(summary(two, rows, [7, 8]), 0.5)] == [8], "below 7 it is searched"


def test_the_page_says_so() -> None:
    summary, table = made_up(30)
    (number,) = summary.best
    for macs, found in ((0.26, True), (0.4, False)):
        front = tuple(
            replace(point, costs={**point.costs, "macs": macs * DENSE["macs"]}) if point.number == number else point
            for point in summary.front
        )
        changed = replace(summary, front=front, reach={"macs": (0.0, DENSE["macs"])})
        shown = content(changed, trials_of(table, summary), "", options={"band": 0.5})
        assert ("smaller models may do as well: try --target flops=25% " in page(assemble([shown]))) is found
