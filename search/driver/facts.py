"""What a search knows of its run before a trial has ended."""

from collections.abc import Iterable, Sequence

from objectives.dense_model import DenseModel
from search.budgets.targets import Budget, Reach
from search.config import SearchConfig
from search.run.summary import DenseFigures, LatencySource, RunSummary
from spaces.vit import describe


def facts_of(
    config: SearchConfig,
    dense: DenseModel,
    reach: Reach,
    targets: Sequence[Budget],
    objectives: Sequence[str],
    spaces: Iterable[str],
) -> RunSummary:
    """The summary of a run without its trials; `search.run.summary.summarise` adds what they came to.

    Args:
        config: of the search.
        dense: of the search.
        reach: of every cost, what the smallest allocation and the dense model have.
        targets: of the search.
        objectives: of its study.
        spaces: names of the spaces that trials are in; the searched one is described in any case.
    """
    space, table = dense.space, dense.latency
    others = {name: describe(dense.model, name, config.study.multiple) for name in spaces if name != space.name}
    return RunSummary(
        model=config.model.model,
        classes=dense.data.num_classes,
        fingerprint=dense.fingerprint,
        space=space.name,
        spaces={space.name: space, **others},
        dense=DenseFigures(
            costs=dense.costs.dense, error=dense.figures.error, images=dense.figures.count, tested=dense.data.size("test") or 0
        ),
        split_before=dense.objective.split_before,
        reach=reach,
        latency=None if table is None else LatencySource(text=table.text, error=table.error),
        objectives=tuple(objectives),
        prefer=config.study.prefer,
        targets=tuple(targets),
    )
