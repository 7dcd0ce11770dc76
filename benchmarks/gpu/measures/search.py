"""Searches of the Fashion-MNIST model for 50 and 30 % of its MACs, each judged on the test split."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from gpu.models import error_on_test, evaluator_of, fashion
from gpu.rows import Figures
from gpu.setting import Setting
from objectives.evaluator import Evaluator
from search import launch
from spaces.allocation import Allocation

_TARGETS, _TRIALS = ("flops=50%", "flops=30%"), 30


def measure(unit: str, setting: Setting, known: Mapping[str, Figures]) -> Iterator[tuple[str, dict[str, Any]]]:
    """One search, which an interrupted one is continued by, and the errors of what it found.

    Beside them those of the dense model and of the allocation that the profile alone chooses, both given the same fine-tune.
    """
    seed, trials = int(unit.split()[1]), 6 if setting.tiny else _TRIALS
    directory = setting.folder / f"search-{seed}{'-tiny' if setting.tiny else ''}"
    config = fashion(
        setting, target=_TARGETS, trials=trials, seed=seed, space="heads", baselines=(), output=str(directory),
        threads=1, band=0.4,
    )  # fmt: skip
    run = launch(config)
    evaluator = evaluator_of(config, setting, f"search-{seed}")
    identity = evaluator.dense.space.identity()
    yield "dense", _judged(evaluator, identity, seed)
    for target in _TARGETS:
        best = run.best(target)
        start = next(
            trial for trial in run.complete if trial.load(run.budget(target).limits) <= 1 and trial.allocation != identity
        )
        yield target, {"trial": best.number, "of": len(run.ended), **_judged(evaluator, best.allocation, seed)}
        if start.number != best.number:
            yield f"{target}, first within", {"trial": start.number, **_judged(evaluator, start.allocation, seed)}


def _judged(evaluator: Evaluator, allocation: Allocation, seed: int) -> dict[str, Any]:
    """Fine-tune it once more, as the search did, and measure it on both splits."""
    dense = evaluator.dense
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        score = evaluator.evaluate(allocation, seed, weights=weights)
        model = evaluator.build(allocation)
        model.load_state_dict(load_file(weights))
    return {
        "MACs kept": score.costs["macs"] / dense.costs.dense["macs"],
        "parameters kept": score.costs["params"] / dense.costs.dense["params"],
        "search split": score.error,
        "test split": error_on_test(evaluator, model),
    }
