"""What pareto.json says of a run besides its trials."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from objectives.dense_model import DenseModel
from search.budgets.targets import Reach
from search.config import SearchConfig
from search.run.tables import describe_space
from spaces.vit import describe


def facts_of(config: SearchConfig, dense: DenseModel, reach: Reach, spaces: Iterable[str]) -> dict[str, Any]:
    """Facts for `search.run.tables.summarise`.

    Args:
        config: of the search.
        dense: of the search.
        reach: of every cost, what the smallest allocation and the dense model have.
        spaces: names of the spaces that trials are in; the searched one is described in any case.
    """
    space, costs = dense.space, dense.costs
    names = dict.fromkeys([space.name, *spaces])
    return {
        "model": config.model.model,
        "classes": dense.data.num_classes,
        "fingerprint": dense.fingerprint,
        "space": space.name,
        "spaces": {name: describe_space(describe(dense.model, name, config.study.multiple)) for name in names},
        "skipped": [asdict(entry) for entry in space.skipped],
        "dense": {**costs.dense, "error": dense.figures.error},
        "reach": {cost: list(ends) for cost, ends in reach.items()},
        **({"latency": {"text": table.text, "error": table.error}} if (table := dense.latency) else {}),
    }
