"""What a run's dense model makes of the test split after the fine-tune of its trials: image by image, for comparisons in pairs.

Every export's report has it. A search must not look at the test split, so it measures none; the weights are not kept either:
they are as large as the dense model. The first export makes them again, with the run's seed, and this file keeps the answers.
"""

import hashlib
from base64 import b64decode, b64encode
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from objectives.dense_model import DenseModel
from spaces.errors import RunError
from spaces.files import write_json
from spaces.schema import read_json

REFERENCE = "reference.json"

Wrong = NDArray[np.bool_]


def reference_mark(dense: DenseModel, seed: int) -> str:
    """Hash of all that they depend on: the dense model, its fine-tune, and the images that it is measured on."""
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


def read_reference(directory: Path, mark: str) -> Wrong | None:
    """Whether the answer to each image of the test split is wrong, [images]; None where no export has kept that of these.

    Raises:
        RunError: the file cannot be read.
    """
    path = directory / REFERENCE
    try:
        found = read_json(path)
        if found["mark"] != mark:
            return None
        packed, images = np.frombuffer(b64decode(found["wrong"], validate=True), dtype=np.uint8), int(found["images"])
        if len(packed) != -(-images // 8):
            raise ValueError(f"it has answers to other than {images} images")
        return np.unpackbits(packed, count=images).astype(bool)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} cannot be read ({error!r}): delete it, and the next export measures it again") from error


def write_reference(directory: Path, mark: str, wrong: Wrong) -> None:
    """Keep them in the run directory, unless that cannot be written to: then every export measures it again."""
    with suppress(OSError):
        packed = b64encode(np.packbits(wrong).tobytes()).decode()  # a bit an image
        top1 = 1 - float(wrong.mean())
        write_json(directory / REFERENCE, {"mark": mark, "test_top1": top1, "images": len(wrong), "wrong": packed})
