"""Tables of what benchmarks/recipes.py measured; `benchmarks/recipes.py report` prints them."""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

DENSE = "dense"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One measurement: errors on the test split, shares of the dense model, and the FFN's share of the MACs removed."""

    model: str
    method: str
    budget: str
    seed: int
    steps: int
    kept: float
    params_kept: float
    before: float
    after: float
    ffn: float
    seconds: float

    @property
    def key(self) -> tuple[str, str, str, int, int]:
        return self.model, self.method, self.budget, self.seed, self.steps


def read(path: Path) -> list[Result]:
    """The measurements so far."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Result(**json.loads(line)) for line in lines]


def report(results: list[Result]) -> None:
    """Tables in Markdown: relative errors, mean ± standard deviation over the seeds."""
    for model in dict.fromkeys(result.model for result in results):
        for steps in sorted({result.steps for result in results if result.model == model}):
            found = [result for result in results if (result.model, result.steps) == (model, steps)]
            dense = {result.seed: result for result in found if result.method == DENSE}
            print(f"\n### {model}, {steps} steps\n")
            errors = [result.after for result in dense.values()]
            print(f"Dense: {spread([r.before for r in dense.values()], 100)} % as given, {spread(errors, 100)} % fine-tuned.\n")
            _table(found, dense, "after", "after the fine-tune")
            _table(found, dense, "before", "before it")
            _smallest(found, dense)
            _shares(found)


def _table(results: list[Result], dense: Mapping[int, Result], field: str, title: str) -> None:
    groups, budgets = _grouped(results, dense, field), _budgets(results)
    print(f"Relative error {title}, by what is kept:\n\n| method | {' | '.join(budgets)} |\n|---|{'---|' * len(budgets)}")
    for method, found in groups.items():
        cells = [f"×{spread(found[budget])}" if budget in found else "–" for budget in budgets]
        print(f"| {method} | {' | '.join(cells)} |")
    print()


def _grouped(results: list[Result], dense: Mapping[int, Result], field: str) -> dict[str, dict[str, list[float]]]:
    """Method -> budget -> relative errors of its seeds."""
    groups: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        if result.method != DENSE and result.seed in dense:
            groups[result.method][result.budget].append(getattr(result, field) / dense[result.seed].after)
    return groups


def _budgets(results: list[Result]) -> list[str]:
    found = {result.budget for result in results if result.budget}
    return sorted(found, key=lambda budget: (budget.partition("=")[0], -float(budget.partition("=")[2].rstrip("%"))))


def _smallest(results: list[Result], dense: Mapping[int, Result], limit: float = 1.05) -> None:
    """The smallest share of MACs kept at a relative error, between budgets by a straight line in the logarithm of the share."""
    print(f"Smallest share of MACs kept at ×{limit}, per seed interpolated between the budgets:\n")
    print("| method | smallest share |\n|---|---|")
    for method in dict.fromkeys(result.method for result in results if result.method != DENSE):
        shares = []
        for seed, reference in dense.items():
            points = sorted(
                (result.kept, result.after / reference.after)
                for result in results
                if (result.method, result.seed) == (method, seed) and result.budget.startswith("flops")
            )
            shares += [_crossing(points, limit)] if points else []
        known = [share for share in shares if share is not None]
        text = f"{spread(known, 100, 1)} %" if known and len(known) == len(shares) else "above the largest budget measured"
        print(f"| {method} | {text} |")
    print()


def _crossing(points: list[tuple[float, float]], limit: float) -> float | None:
    """Where the error rises above the limit on the way down; the smallest share measured if it never does."""
    down = points[::-1]
    if not down or down[0][1] > limit:
        return None
    for (share, error), (smaller, larger) in pairwise(down):
        if larger > limit:
            part = (limit - error) / (larger - error)
            return math.exp(math.log(share) + part * (math.log(smaller) - math.log(share)))
    return down[-1][0]


def _shares(results: list[Result]) -> None:
    print("What the cuts took, mean over seeds:\n")
    print("| method | budget | keeps of MACs | of parameters | FFN's share of what was removed |\n|---|---|---|---|---|")
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        if result.method != DENSE:
            groups[result.method, result.budget].append(result)
    for (method, budget), found in groups.items():
        columns = [statistics.mean(getattr(result, name) for result in found) for name in ("kept", "params_kept", "ffn")]
        print(f"| {method} | {budget} | {' | '.join(f'{value:.1%}' for value in columns)} |")


def spread(values: list[float], scale: float = 1.0, digits: int | None = None) -> str:
    """Mean ± standard deviation."""
    digits = digits if digits is not None else 2 if scale > 1 else 3
    text = f"{scale * statistics.mean(values):.{digits}f}"
    return f"{text} ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else text
