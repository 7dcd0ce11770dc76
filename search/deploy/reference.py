"""The top-1 accuracy, on the test split, of a run's dense model after the fine-tune of its trials.

Every export's report has it. A search must not look at the test split, so it measures none; the weights are not kept either:
they are as large as the dense model. The first export makes them again, with the run's seed, and this file keeps the figure.
"""

import hashlib
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from objectives.dense_model import DenseModel
from spaces.errors import RunError
from spaces.files import write_json
from spaces.schema import read_json

REFERENCE = "reference.json"


def reference_mark(dense: DenseModel, seed: int) -> str:
    """Hash of all that the figure depends on: the dense model, its fine-tune, and the images that it is measured on."""
    objective, data = dense.objective, dense.objective.data
    images = {name: value for name, value in asdict(data).items() if name not in ("workers", "eval_batch_size")}
    fixed = (
        dense.fingerprint,
        asdict(objective.finetune),
        images,
        dense.data.size("test"),
        dense.data.mark_of("test"),
        seed,
    )
    return hashlib.sha256(repr(fixed).encode()).hexdigest()[:16]


def read_reference(directory: Path, mark: str) -> float | None:
    """The figure; None where no export has measured it, or only for other images.

    Raises:
        RunError: the file cannot be read.
    """
    path = directory / REFERENCE
    try:
        found = read_json(path)
        return float(found["test_top1"]) if found["mark"] == mark else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} cannot be read ({error!r}): delete it, and the next export measures it again") from error


def write_reference(directory: Path, mark: str, top1: float) -> None:
    """Keep the figure in the run directory, unless that cannot be written to: then every export measures it again."""
    with suppress(OSError):
        write_json(directory / REFERENCE, {"mark": mark, "test_top1": top1})
