"""Targets as users write them, parsed once and without a model, and the budgets that they are for one model."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from objectives.cost.spec import COSTS, MAIN, Cost, CostSpec, cost_of, counted_costs
from spaces.errors import TargetError

_BOUND = re.compile(r"\s*(\w+)\s*=\s*([0-9]*\.?[0-9]+)\s*(%|[a-z]*)\s*", re.IGNORECASE)

Reach = Mapping[Cost, tuple[float, float]]  # cost -> (smallest allocation's, dense model's)


@dataclass(frozen=True, kw_only=True)
class Bound:
    """An upper bound on one cost.

    Attributes:
        text: as the user wrote it.
        cost: what is bounded.
        amount: in the cost's unit, or in percent of the dense model's.
        is_percent: which of the two.
    """

    text: str
    cost: Cost
    amount: float
    is_percent: bool

    def limit(self, reach: Reach) -> float:
        """The bound in the cost's unit.

        Raises:
            TargetError: the cost is not known, or the limit is outside what the space can reach.
        """
        spec = COSTS[self.cost]
        if self.cost not in reach:
            raise TargetError(
                f"target {self.text!r}: this run measured no {spec.word}: search with a {spec.flag} target or objective"
            )
        least, dense = reach[self.cost]
        limit = dense * self.amount / 100 if self.is_percent else self.amount
        if least <= limit <= dense:
            return limit
        raise TargetError(
            f"target {self.text!r} is {spec.format_with_unit(limit)}, but this space reaches from "
            f"{spec.format_with_unit(least)} ({least / dense:.1%}) to {spec.format_with_unit(dense)} (100%, the dense model)"
        )


@dataclass(frozen=True, kw_only=True)
class Target:
    """What one --target asks for: bounds that are kept together.

    Attributes:
        text: as the user wrote it.
        bounds: each on another cost.
    """

    text: str
    bounds: tuple[Bound, ...]

    @property
    def costs(self) -> tuple[Cost, ...]:
        """What it bounds."""
        return tuple(bound.cost for bound in self.bounds)

    @property
    def folder(self) -> str:
        """Name of an export's folder: ``flops=50%`` -> flops50, ``flops=50%,params=11M`` -> flops50-params11M."""
        parts = (re.sub(r"[=%\s]", "", bound.text) for bound in self.bounds)
        return "-".join(re.sub(r"[^\w.-]+", "-", part).strip(".-") for part in parts)

    def resolve(self, reach: Reach, later: Collection[Cost] = ()) -> "Budget":
        """What it comes to for one model.

        Args:
            reach: of the costs that are known.
            later: costs that are not known yet; bounds on them are left out.

        Raises:
            TargetError: `Bound.limit`'s.
        """
        bounds = tuple(bound for bound in self.bounds if bound.cost not in later)
        return Budget(target=self, bounds=bounds, limits={bound.cost: bound.limit(reach) for bound in bounds})


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A target for one model.

    Attributes:
        target: what was asked for.
        bounds: those of its bounds that are settled.
        limits: cost -> upper bound, in the cost's unit.
    """

    target: Target
    bounds: tuple[Bound, ...]
    limits: Mapping[Cost, float]

    @property
    def text(self) -> str:
        """Its bounds for people."""
        return " and ".join(bound.text for bound in self.bounds)


def parse_target(text: str) -> Target:
    """A target such as ``flops=50%``, ``flops=2.3G`` (MACs), ``params=11M``, ``latency=8ms`` or ``flops=50%,params=11M``.

    Raises:
        TargetError: malformed, or one cost twice.
    """
    target = Target(text=text, bounds=tuple(map(_parse_bound, text.split(","))))
    if len(set(target.costs)) < len(target.costs):
        raise TargetError(f"two bounds for one cost in {text!r}: write separate budgets as --target flops=50% flops=30%")
    return target


def budgets_of(targets: Sequence[Target], reach: Reach, later: Collection[Cost] = ()) -> tuple[Budget, ...]:
    """What targets come to for one model, without those that are all about costs that are known later.

    Raises:
        TargetError: `Bound.limit`'s.
    """
    budgets = (target.resolve(reach, later) for target in targets)
    return tuple(budget for budget in budgets if budget.bounds)


def check_recipes(names: Sequence[str], targets: Sequence[Target], alone: bool) -> None:
    """Raise where recipes would be given a target that they cannot keep: of bounds on measured costs alone.

    Args:
        names: of the recipes.
        targets: of the run.
        alone: whether there is no search beside them that keeps the bounds which they do not.

    Raises:
        TargetError: there is such a target.
    """
    for target in targets if names else ():
        measured = [bound for bound in target.bounds if COSTS[bound.cost].is_measured]
        if not measured or not (alone or len(measured) == len(target.bounds)):
            continue
        counted = [bound.text for bound in target.bounds if bound not in measured] or [f"{MAIN.flag}=50%"]
        kept = counted if alone else [*counted, target.text]
        raise TargetError(
            f"recipe {names[0]!r} keeps bounds on {_words(counted_costs())}, not on "
            f"{_words([COSTS[bound.cost] for bound in measured])}: write --target {','.join(kept)}"
        )


def _parse_bound(text: str) -> Bound:
    match = _BOUND.fullmatch(text)
    spec = None if match is None else cost_of(match[1])
    if match is None or spec is None or match[3].lower() not in ("%", *spec.units):
        raise TargetError(f"target {text!r} is not understood: write {_examples()}")
    number, unit = float(match[2]), match[3].lower()
    amount = number if unit == "%" else number * spec.units[unit]
    return Bound(text=text.strip(), cost=spec.name, amount=amount, is_percent=unit == "%")


def _examples() -> str:
    """A share of the main cost, then one target for every cost."""
    *first, last = (f"{MAIN.flag}=50%", *(spec.example for spec in COSTS.values()))
    return f"{', '.join(first)} or {last}"


def _words(specs: Collection[CostSpec]) -> str:
    return " or ".join(spec.word for spec in specs)
