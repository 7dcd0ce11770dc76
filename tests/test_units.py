"""Times, sizes and divergences in words; expected texts were written by hand."""

import pytest

from objectives.cost.spec import COSTS
from objectives.units import format_divergence, format_size, format_spread, format_time


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.21, "4.21 s"), (4.2149, "4.21 s"), (4210.4, "4210 s"), (1.0, "1 s"), (0.99951, "1 s"), (0.9994, "999 ms"),
        (0.02, "20 ms"), (0.00821, "8.21 ms"), (0.001, "1 ms"), (0.0009996, "1 ms"), (0.000512, "512 µs"), (3.2e-6, "3.2 µs"),
        (5e-8, "0.05 µs"), (0.0, "0 s"),
    ],
)  # fmt: skip
def test_a_time_has_three_digits_and_its_unit(seconds: float, text: str) -> None:
    assert format_time(seconds) == COSTS["latency"].format_with_unit(seconds) == text


def test_quartiles_are_in_the_unit_of_the_median() -> None:
    assert format_spread(4.21, 4.183, 4.3) == "4.21 s (4.18–4.3)"
    assert format_spread(0.9996, 0.95, 1.25) == "1 s (0.95–1.25)"
    assert format_spread(0.999, 0.9, 1.2) == "999 ms (900–1200)"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_600, "1 MB"),
        (1_250_000, "1.25 MB"),
        (2.5e9, "2.5 GB"),
        (3e15, "3000 TB"),
    ],
)
def test_a_size_is_decimal(count: float, text: str) -> None:
    assert format_size(count) == text


@pytest.mark.parametrize(
    ("nats", "text"),
    [
        (0, "0"),
        (3.14e-6, "3.1e-06"),
        (0.0001234, "0.00012"),
        (0.1, "0.10"),
        (0.129, "0.13"),
        (1.26, "1.3"),
        (9.96, "10"),
        (123, "123"),
    ],
)
def test_a_divergence_has_two_digits_however_small(nats: float, text: str) -> None:
    assert format_divergence(nats) == text
