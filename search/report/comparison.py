"""Several runs shown together: what they are called, and what about them cannot simply be compared."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from objectives.cost.spec import word_of
from objectives.training.config import FinetuneConfig
from search.masking import without_secrets
from search.run.run import Run, open_run
from search.run.summary import RunSummary
from spaces.errors import CompressionError, RunError, told

_IMAGES = (
    "dataset", "data_dir", "train_split", "search_split", "search_size", "holdout", "class_order", "class_map", "split_seed",
)  # fmt: skip
_TRAINING = (*(field.name for field in fields(FinetuneConfig)), "batch_size", "seed")


def run_names(runs: Sequence[str]) -> list[str]:
    """The last part of every run directory where those are all different, else the directories."""
    short = [Path(run).resolve().name for run in runs]
    return short if len(set(short)) == len(runs) else list(runs)


def differences(summaries: Sequence[RunSummary], options: Sequence[Mapping[str, Any]]) -> list[str]:
    """In sentences, what differs between runs so that their fronts cannot simply be compared; none of a single run.

    Args:
        summaries: of every run.
        options: that every run was launched with; what one does not say is not compared.
    """
    return [
        *_sentence("The dense models differ, and costs are shares of each run's own", map(_dense, summaries)),
        *_sentence("The objectives differ, and with them what a hypervolume is", map(_objectives, summaries)),
        *_sentence("The images differ, and with them what an error is", _values(options, _IMAGES)),
        *_sentence("The errors as built are on other images", (summary.images_before for summary in summaries)),
        *_sentence("The fine-tunes differ", _values(options, _TRAINING)),
    ]


def _sentence(claim: str, texts: Iterable[str]) -> list[str]:
    different = list(dict.fromkeys(texts))
    return [f"{claim}: {' / '.join(different)}."] if len(different) > 1 else []


def _dense(summary: RunSummary) -> str:
    dense = summary.dense
    costs = ", ".join(spec.format_with_unit(dense.costs[spec.name]) for spec in summary.costs if not spec.is_measured)
    return f"{summary.model}, {costs}, error {dense.error:.2%}"


def _objectives(summary: RunSummary) -> str:
    return " and ".join(map(word_of, summary.objectives))


def _values(options: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Of every run, those of the options that are not the same in all of them."""
    shared = [name for name in names if all(name in each for each in options)]
    different = [name for name in shared if any(each[name] != options[0][name] for each in options)]
    return [", ".join(f"{name} {without_secrets(str(each[name]))}" for name in different) for each in options]


def opened(directories: Sequence[Path]) -> tuple[list[Run], list[tuple[str, str]]]:
    """The runs in some directories, and the directories of those that cannot be read, each with the reason.

    Raises:
        RunError: none of them can be read.
    """
    runs, broken = list[Run](), list[tuple[str, str]]()
    for directory in directories:
        try:
            runs.append(open_run(directory))
        except (CompressionError, OSError) as error:
            broken.append((str(directory), told(error)))
    if not runs:
        raise RunError(broken[0][1])
    return runs, broken
