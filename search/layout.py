"""Names of the files of a run directory, each said once."""

from pathlib import Path

CONFIG = "config.yaml"


TRIALS, SUMMARY = "trials.csv", "pareto.json"


WEIGHTS, METRICS, STDERR, CHECKPOINT = "weights.safetensors", "metrics.jsonl", "stderr.log", "checkpoint.safetensors"


RUNNING = "running.json"


AUDIT = "audit.json"


LOCK = ".lock"  # a file in the run directory, held by the process that writes the run


JOURNAL = "study.journal"


def weights_of(directory: Path, number: int) -> Path:
    """Where the weights of a trial on the front lie."""
    return directory / "front" / f"{number:04d}.safetensors"


def weights_in(scratch: Path, name: str) -> Path:
    """Where an export keeps weights that it makes, in a folder that goes with it."""
    return scratch / f"{name}.safetensors"
