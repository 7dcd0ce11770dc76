"""What the rows of a part say, in sentences; of what is missing nothing is said."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev

from gpu.rows import Figures

Found = Mapping[tuple[str, str], Figures]  # (unit, what) -> figures


def tests(found: Found) -> list[str]:
    return [f"{name} failed: {figures['failed']}" for (_, name), figures in found.items() if name != "all"]


def amp(found: Found) -> list[str]:
    rows = list(found.values())
    if len(rows) < 3:
        return []
    lines = []
    for figure in ("KL", "error"):
        base = [row[f"{figure}, float32"] for row in rows]
        rank = {
            way: spearman(base, [row[f"{figure}, {way}"] for row in rows]) for way in ("mixed precision", "float32, seed 1")
        }
        lines.append(
            f"Rank correlation (Spearman) of the {figure} over {len(rows)} allocations: float32 with mixed precision "
            f"{rank['mixed precision']:.3f}; float32 with float32 of another seed {rank['float32, seed 1']:.3f}."
        )
    saved = mean(row["seconds, float32"] for row in rows) / mean(row["seconds, mixed precision"] for row in rows)
    return [*lines, f"A trial in float32 takes {saved:.2f} times as long as in mixed precision."]


def memory(found: Found) -> list[str]:
    (whole, *others) = [(what, figures) for (_, what), figures in found.items()]
    return [
        f"With {what}: {figures['parts']} parts, KL {figures['KL']:.6f} against {whole[1]['KL']:.6f} "
        f"({figures['KL'] / whole[1]['KL'] - 1:+.2e}), error {figures['error']:.4f} against {whole[1]['error']:.4f}."
        for what, figures in others
    ]


def nccl(found: Found) -> list[str]:
    alone, *others = found.items()
    return [
        f"{what}: error {figures['error after']:.4f} against {alone[1]['error after']:.4f} alone, loss {figures['loss']:.4f} "
        f"against {alone[1]['loss']:.4f}, {figures['seconds an epoch'] / alone[1]['seconds an epoch']:.2f} times its time."
        for (_, what), figures in others
    ]


def naive(found: Found) -> list[str]:
    seconds = {what: figures["seconds"] for (_, what), figures in found.items()}
    lines = []
    for budget in dict.fromkeys(what.split(", ")[1] for what in seconds):
        if {f"ours, {budget}", f"naive, {budget}"} <= set(seconds):
            times = seconds[f"naive, {budget}"] / seconds[f"ours, {budget}"]
            lines.append(f"{budget} of the MACs: the engine does {times:.2f} times as many candidates as the naive search.")
    return lines


def workers(found: Found) -> list[str]:
    rates = {unit: figures["candidates an hour"] for (unit, _), figures in found.items()}
    return [f"{unit} workers do {rate / rates['1']:.2f} times what one does." for unit, rate in rates.items() if unit != "1"]


def ways(found: Found) -> list[str]:
    """Speed against the base of the same process, and the steps after which the preparation is won back."""
    lines = []
    for (_, what), figures in found.items():
        if "error" in figures:
            lines.append(f"{what} of the MACs: impossible here: {figures['error']}")
        elif not what.startswith("base"):
            steps = figures["pays_after_steps"]
            pays = "does not pay" if steps is None else f"pays after {steps} steps"
            lines.append(f"{what} of the MACs: {figures['share_of_base']:.2f} of the base's time: {pays}.")
    return lines


def recipes(found: Found) -> list[str]:
    """Means over seeds of errors on the test split, relative to the dense model's with the same fine-tune."""
    after = {unit: figures["test split"] for (unit, what), figures in found.items() if what.startswith("after")}
    seeds = {unit.rsplit(" ", 1)[1] for unit in after}
    ratios: dict[str, list[float]] = {}
    for unit, error in after.items():
        name, seed = unit.split(", seed ")
        if name != "dense" and (dense := after.get(f"dense, seed {seed}")):
            ratios.setdefault(name, []).append(error / dense)
    lines = [
        f"{name}: ×{_spread(values)} of the dense model's error after its own 20 epochs." for name, values in ratios.items()
    ]
    for seed in sorted(seeds):
        gohsp, dense = after.get(f"gohsp, seed {seed}"), found.get((f"dense, seed {seed}", "at the cut"), {}).get("test split")
        if gohsp is not None and dense is not None:
            holds = "holds" if gohsp <= dense else "does not hold"
            lines.append(
                f"40 % of the parameters gone with no loss (GOHSP), seed {seed}: {gohsp:.2%} error with 60 % of them, "
                f"{dense:.2%} of the dense model as given: {holds}."
            )
    return lines


def search(found: Found) -> list[str]:
    """Means over seeds of errors on the test split, relative to the dense model's with the same fine-tune."""
    ratios: dict[str, list[float]] = {}
    for (unit, what), figures in found.items():
        if what != "dense" and (unit, "dense") in found:
            ratios.setdefault(what, []).append(figures["test split"] / found[unit, "dense"]["test split"])
    return [f"{what}: ×{_spread(values)} of the dense model's error." for what, values in ratios.items()]


FINDINGS: dict[str, Callable[[Found], list[str]]] = {
    "tests": tests,
    "amp": amp,
    "memory": memory,
    "nccl": nccl,
    "naive": naive,
    "workers": workers,
    "ways": ways,
    "recipes": recipes,
    "search": search,
}


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation; ties have the mean of their ranks, NaN where one side is all ties."""
    ranks = [_ranks(values) for values in (first, second)]
    middle = (len(first) - 1) / 2
    products = [
        sum((a - middle) * (b - middle) for a, b in zip(*pair, strict=True)) for pair in (ranks, ranks[:1] * 2, ranks[1:] * 2)
    ]
    return products[0] / math.sqrt(products[1] * products[2]) if products[1] * products[2] else math.nan


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2 for value in values]


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
