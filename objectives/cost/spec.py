"""The costs that a search knows: how each is named, shown, bounded and counted. A new cost is one entry of `COSTS`."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from objectives.units import format_count, format_time

Cost = str  # a key of `COSTS`

_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


@dataclass(frozen=True, kw_only=True)
class CostSpec:
    """One cost.

    A cost that is counted is known of every model, and recipes can keep bounds on it. One that is measured is known only where
    a run measured it, which it does for a target or an objective. Searches can bound both.

    Attributes:
        name: its key in `COSTS`; also its column in tables.
        flag: its name in targets and among the objectives.
        aliases: other names that a target may use.
        word: its name for people.
        heading: its name in a model card.
        example: a target in its own unit, for messages.
        units: ending of an amount in a target, in small letters -> factor to the unit that figures are in.
        format: a figure as text, without `unit`.
        unit: written behind a figure that stands by itself; empty where `format` writes one.
        is_whole: whether its figures are whole numbers.
        count: (MACs, parameters) -> figure, of a model and of a branch; linear, because the costs of branches add up. None for
            a cost that is measured.
    """

    name: Cost
    flag: str
    aliases: tuple[str, ...] = ()
    word: str
    heading: str
    example: str
    units: Mapping[str, float]
    format: Callable[[float], str]
    unit: str = ""
    is_whole: bool = False
    count: Callable[[int, int], float] | None = None

    @property
    def is_measured(self) -> bool:
        """Whether only a measurement tells it."""
        return self.count is None

    @property
    def kept(self) -> str:
        """Column of its share of the dense model's."""
        return f"{self.name}_kept"

    def format_with_unit(self, value: float) -> str:
        """A figure that stands by itself: '1.23 M MACs', '8.21 ms'."""
        return f"{self.format(value)} {self.unit}".rstrip()


# In the order in which they are shown.
COSTS: dict[Cost, CostSpec] = {
    spec.name: spec
    for spec in (
        CostSpec(
            name="macs",
            flag="flops",  # as the literature calls them
            aliases=("macs",),
            word="MACs",
            heading="MACs for one image",
            example="flops=2.3G (MACs)",
            units=_COUNTS,
            format=format_count,
            unit="MACs",
            is_whole=True,
            count=lambda macs, params: macs,
        ),
        CostSpec(
            name="params",
            flag="params",
            word="parameters",
            heading="parameters",
            example="params=11M",
            units=_COUNTS,
            format=format_count,
            unit="parameters",
            is_whole=True,
            count=lambda macs, params: params,
        ),
        CostSpec(
            name="latency",
            flag="latency",
            word="latency",
            heading="latency",
            example="latency=8ms",
            units={"s": 1.0, "ms": 1e-3, "us": 1e-6},
            format=format_time,
        ),
    )
}
# What is shown where there is room for one cost, and what is bounded where nothing else was asked for.
MAIN = COSTS["macs"]


def cost_of(flag: str) -> CostSpec | None:
    """The cost that an option calls by this name; None if there is none."""
    name = flag.lower()
    return next((spec for spec in COSTS.values() if name in (spec.flag, *spec.aliases)), None)


def counted_costs() -> tuple[CostSpec, ...]:
    """Those that are known of every model."""
    return tuple(spec for spec in COSTS.values() if not spec.is_measured)


def known_costs(figures: Iterable[str]) -> tuple[CostSpec, ...]:
    """Those that are among the names of some figures."""
    names = set(figures)
    return tuple(spec for spec in COSTS.values() if spec.name in names)


def word_of(column: str) -> str:
    """An objective for people: 'MACs', 'error'."""
    return COSTS[column].word if column in COSTS else column
