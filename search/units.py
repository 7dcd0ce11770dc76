"""Costs, shares and durations as people read them."""

from objectives.units import format_time

WORDS: dict[str, str] = {"macs": "MACs", "params": "parameters", "latency": "latency"}


def format_count(value: float) -> str:
    """1234567 -> '1.23 M'."""
    for unit in ("", "K", "M", "G", "T"):
        if abs(value) < 999.5 or unit == "T":
            return f"{value:.3g} {unit}".strip()
        value /= 1000
    raise AssertionError("unreachable")


def format_amount(cost: str, value: float) -> str:
    """A figure of a cost: '1.23 M' MACs or parameters, '8.21 ms'."""
    if cost != "latency":
        return format_count(value)
    return format_time(value)


def format_cost(cost: str, value: float) -> str:
    """A figure of a cost with its unit: '1.23 M MACs', '8.21 ms'."""
    return format_amount(cost, value) + ("" if cost == "latency" else f" {WORDS[cost]}")


def format_kept(share: float) -> str:
    """0.5 -> '50.0 % (−50.0 %)': what is kept, and what is gone; '±' where nothing is."""
    change = f"{100 * (share - 1):+.1f}".replace("-", "−")
    return f"{share * 100:.1f} % ({'±0.0' if change[1:] == '0.0' else change} %)"


def format_duration(seconds: float) -> str:
    """72 -> '72 s', 300 -> '5 min', 7200 -> '2.0 h'."""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.1f} h"
