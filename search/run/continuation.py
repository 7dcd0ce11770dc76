"""Whether a launch may continue the run that is in its directory."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from objectives.latency.table import LATENCY, LatencyTable
from search.config import SearchConfig
from search.layout import JOURNAL
from search.masking import is_masked
from search.paths import placeless
from search.run.options import comparable, stored_config, stored_options
from search.run.summary_file import read_summary
from search.runners.resources import MachineConfig
from spaces.errors import RunError

# What may differ between two launches of one run; everything else changes what its trials mean.
_FREE = frozenset(
    (
        "trials",
        "until_settled",
        "sampler",
        "screening",
        "baselines",
        "recipe",
        "rungs",
        "audit",
        *(field.name for field in fields(MachineConfig)),
        "workers",
        "eval_batch_size",
        "least_images",
        "output",
        "checkpoint",
        "data_dir",
        "dataset_download",
    )
)


def is_new(directory: Path) -> bool:
    """Whether no launch has begun here: there is no run, or only what a first answer has written, whose options may change."""
    options = stored_options(directory)
    if not options:
        return True
    if options.get("storage") or (directory / JOURNAL).exists():
        return False
    try:
        return not read_summary(directory).states
    except (OSError, RunError):
        return False


def check_same_run(directory: Path, config: SearchConfig) -> None:
    """Raise unless `config` may continue what is in `directory`.

    Raises:
        RunError: the directory holds a run with another value of an option that its trials depend on.
    """
    if is_new(directory):
        return
    if config.study.storage is not None and is_masked(config.study.storage):
        raise RunError(f"{directory} does not keep the password of {config.study.storage}: give --storage with it again")
    before, now = comparable(stored_config(directory).flat()), comparable(config.flat())
    for name, value in now.items():
        if name not in _FREE and before[name] != value and not _is_same_file(name, before[name], value):
            raise RunError(f"{directory} was searched with {name}={before[name]!r}, not {value!r}: choose another --output")


def _is_same_file(name: str, before: Any, now: Any) -> bool:
    """Whether the file that an option names has only moved: it has the same name and, where both are there, content."""
    if placeless(name, before) == before or placeless(name, before) != placeless(name, now):
        return False
    try:
        return Path(before).read_bytes() == Path(now).read_bytes()
    except OSError:  # one of them is gone, or a folder
        return not Path(before).exists()


def check_same_latencies(directory: Path, config: SearchConfig, fingerprint: str | None = None) -> None:
    """Raise where a run that has latencies has lost the table of them.

    Args:
        directory: of the run.
        config: of the launch.
        fingerprint: of its model and space, as soon as that is known.

    Raises:
        RunError: measured anew, they would not be those of its trials.
    """
    path = directory / LATENCY
    if not config.study.times or is_new(directory):
        return
    if not path.exists():
        raise RunError(f"{path} is missing: restore it, or choose another --output")
    table = LatencyTable.load(path)
    if fingerprint is not None and (table.fingerprint, table.config) != (fingerprint, config.latency):
        raise RunError(f"{path} has latencies of another model or of other options: restore it, or choose another --output")


def identity_of(config: SearchConfig, fingerprint: str) -> str:
    """Hash of all that a run's trials depend on: the same for all launches of one search, wherever its directory is.

    Args:
        config: of the launch.
        fingerprint: of the weights, the space and the calibration images.
    """
    fixed = {name: placeless(name, value) for name, value in config.flat().items() if name not in _FREE and name != "storage"}
    return hashlib.sha256(json.dumps([fingerprint, fixed], sort_keys=True).encode()).hexdigest()[:16]


def check_same_model(directory: Path, fingerprint: str) -> None:
    """Raise unless the run in `directory`, if there is one, was made from the weights and images of this fingerprint.

    Raises:
        RunError: it was made from others.
    """
    try:
        before = read_summary(directory).fingerprint
    except FileNotFoundError:
        return
    if before != fingerprint and not is_new(directory):
        raise RunError(f"{directory} was searched with other weights or images than these: choose another --output")
