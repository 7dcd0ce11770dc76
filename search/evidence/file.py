"""evidence.safetensors: what the search split tells of trials, for those who only read the run."""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from search.evidence.posterior import NO_EVIDENCE, Evidence
from search.layout import EVIDENCE
from spaces.errors import RunError
from spaces.files import replacing


def write_evidence(directory: Path, evidence: Evidence) -> None:
    """Write evidence.safetensors."""
    numbers = np.array(evidence.numbers, dtype=np.int64)
    counts = np.array([evidence.images, evidence.tested], dtype=np.int64)
    arrays = {"numbers": numbers, "means": evidence.means, "covariance": evidence.covariance, "counts": counts}
    with replacing(directory / EVIDENCE) as partial:
        save_file({name: np.ascontiguousarray(found) for name, found in arrays.items()}, partial)


def read_evidence(directory: Path) -> Evidence:
    """Inverse of `write_evidence`; without the file there is no evidence.

    Raises:
        RunError: it is damaged.
    """
    path = directory / EVIDENCE
    if not path.exists():
        return NO_EVIDENCE
    try:
        found = load_file(path)
        numbers, means, covariance = found["numbers"], found["means"], found["covariance"]
        images, tested = map(int, found["counts"])
        if means.shape != numbers.shape or covariance.shape != (len(numbers), len(numbers)):
            raise ValueError("its arrays are not of one length")
        if not (np.isfinite(means).all() and np.isfinite(covariance).all()):
            raise ValueError("it holds figures that are not finite")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} cannot be read ({error}): remove it, and launch the run again to write it anew") from error
    return Evidence(
        numbers=tuple(numbers.tolist()), means=means.astype(float), covariance=covariance.astype(float),
        images=images, tested=tested,
    )  # fmt: skip
