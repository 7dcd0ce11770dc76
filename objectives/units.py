"""Counts, shares, times, sizes and divergences as people read them: the same digits and units wherever a figure is printed."""

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))  # decimal, as disks are sold


def format_count(value: float) -> str:
    """1234567 -> '1.23 M'."""
    for unit in ("", "K", "M", "G", "T"):
        if abs(value) < 999.5 or unit == "T":
            return f"{value:.3g} {unit}".strip()
        value /= 1000
    raise AssertionError("unreachable")


def format_kept(share: float) -> str:
    """0.5 -> '50.0 % (−50.0 %)': what is kept, and what is gone; '±' where nothing is."""
    change = f"{100 * (share - 1):+.1f}".replace("-", "−")
    return f"{share * 100:.1f} % ({'±0.0' if change[1:] == '0.0' else change} %)"


def format_interval(mean: float, low: float, high: float) -> str:
    """Shares with the ends of their interval: '13.4 % (12.5–14.4)'; with two digits where the ends are within a point."""
    return _spread(100 * mean, 100 * low, 100 * high, " %")


def format_ratio(mean: float, low: float, high: float) -> str:
    """A ratio with the ends of its interval: '×1.04 (1.01–1.07)'."""
    return f"×{mean:.2f} ({low:.2f}–{high:.2f})"


def format_points(mean: float, low: float, high: float) -> str:
    """A difference of shares, in points, with the ends of its interval: '0.12 points (−0.05 to 0.29)'."""
    middle, *ends = (f"{100 * value:.2f}".replace("-0.00", "0.00").replace("-", "−") for value in (mean, low, high))
    return f"{middle} points ({' to '.join(ends)})"


def _spread(mean: float, low: float, high: float, unit: str) -> str:
    digits = 1 if high - low >= 1 else 2
    return f"{mean:.{digits}f}{unit} ({low:.{digits}f}–{high:.{digits}f})"


def format_time(seconds: float) -> str:
    """0.00821 -> '8.21 ms': three digits."""
    unit, name = _unit(seconds, _TIMES) if seconds else _TIMES[0]
    return f"{_digits(seconds / unit)} {name}"


def format_spread(middle: float, low: float, high: float) -> str:
    """A median with its quartiles, in seconds: '4.21 s (4.18–4.3)'; the median's unit for all."""
    unit, _ = _unit(middle, _TIMES)
    return f"{format_time(middle)} ({_digits(low / unit)}–{_digits(high / unit)})"


def format_size(count: float) -> str:
    """Bytes: 1250000 -> '1.25 MB'."""
    unit, name = _unit(count, _SIZES)
    return f"{_digits(count / unit)} {name}"


def format_duration(seconds: float) -> str:
    """72 -> '72 s', 300 -> '5 min', 7200 -> '2.0 h'."""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.1f} h"


def format_divergence(nats: float) -> str:
    """A KL divergence in nats, with two digits however small it is: '0.10', '0.00021', '3.1e-06'."""
    if nats == 0:
        return "0"
    return f"{nats:#.2g}" if nats < 9.95 else f"{nats:.0f}"


def _unit(value: float, units: tuple[tuple[float, str], ...]) -> tuple[float, str]:
    """The largest unit of which there is one after rounding, or the smallest."""
    rounded = float(f"{abs(value):.3g}")
    return next((entry for entry in units if rounded >= entry[0]), units[-1])


def _digits(value: float) -> str:
    """Three digits and no zeros behind the point, or all digits of a thousand and more: never an exponent."""
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{float(f'{value:.3g}'):.12f}".rstrip("0").rstrip(".")
