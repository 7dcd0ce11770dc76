"""What pareto.json says of a run besides its trials."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from objectives.evaluator import Evaluator
from search.budgets.targets import Reach
from search.config import SearchConfig
from search.run.tables import describe_space
from spaces.vit import describe


def facts_of(config: SearchConfig, evaluator: Evaluator, reach: Reach, spaces: Iterable[str]) -> dict[str, Any]:
    """Facts for `search.run.tables.summarise`.

    Args:
        config: of the search.
        evaluator: prepared.
        reach: of every cost, what the smallest allocation and the dense model have.
        spaces: names of the spaces that trials are in; the searched one is described in any case.
    """
    space, costs = evaluator.space, evaluator.costs
    names = dict.fromkeys([space.name, *spaces])
    return {
        "model": config.model.model,
        "classes": evaluator.data.num_classes,
        "fingerprint": evaluator.fingerprint,
        "space": space.name,
        "spaces": {name: describe_space(describe(evaluator.model, name, config.study.multiple)) for name in names},
        "skipped": [asdict(entry) for entry in space.skipped],
        "dense": {**costs.dense, "error": evaluator.dense.error},
        "reach": {cost: list(ends) for cost, ends in reach.items()},
        **({"latency": {"text": table.text, "error": table.error}} if (table := evaluator.latency) else {}),
    }
