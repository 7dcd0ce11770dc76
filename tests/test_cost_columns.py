"""Costs in the terminal's tables fit beside each other, and what is not known is left empty."""

from search.terminal.tables import cost_cells, cost_columns

DENSE = {"macs": 2_000_000, "params": 4000, "error": 0.1}


def test_amounts_and_shares_of_two_costs() -> None:
    assert cost_columns(DENSE) == ["MACs", "keeps of MACs", "parameters", "keeps of parameters"]
    assert cost_cells({"macs": 500_000, "params": 1000, "error": 0.2}, DENSE) == [
        "500 K", "25.0 % (−75.0 %)", "1 K", "25.0 % (−75.0 %)",
    ]  # fmt: skip


def test_where_latency_is_known_it_alone_has_an_amount() -> None:
    dense = {**DENSE, "latency": 0.004}
    assert cost_columns(dense) == ["keeps of MACs", "keeps of parameters", "latency", "keeps of latency"]
    shares = ["25.0 % (−75.0 %)", "25.0 % (−75.0 %)"]
    assert cost_cells({"macs": 500_000, "params": 1000, "latency": 0.002}, dense) == [*shares, "2 ms", "50.0 % (−50.0 %)"]
    assert cost_cells({"macs": 500_000, "params": 1000}, dense) == [*shares, "", ""]
