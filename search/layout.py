"""Names of the files of a run directory, each said once, and the number of their format."""

from pathlib import Path

# In config.yaml, pareto.json and env.json. Raise it with every change that makes an old run unreadable, or a new run unreadable
# for the version before. Other files of a run are read after one of these.
RUN_FORMAT = 4
ANOTHER_RUN = "search again with another --output"  # what to do about a run of an older format


CONFIG = "config.yaml"


TRIALS, SUMMARY, ENVIRONMENT = "trials.csv", "pareto.json", "env.json"


WEIGHTS, METRICS, STDERR, CHECKPOINT = "weights.safetensors", "metrics.jsonl", "stderr.log", "checkpoint.safetensors"
OUTCOMES = "outcomes.safetensors"


FIRST = "first.json"


EVIDENCE = "evidence.safetensors"


RUNNING = "running.json"


AUDIT = "audit.json"


LOCK = ".lock"  # a file in the run directory, held by the process that writes the run


JOURNAL = "study.journal"


def weights_of(directory: Path, number: int) -> Path:
    """Where the weights of a trial on the front lie."""
    return directory / "front" / f"{number:04d}.safetensors"


def outcomes_of(directory: Path, number: int) -> Path:
    """Where lies what a trial made of every single image of the search split."""
    return directory / "trials" / f"{number:04d}" / OUTCOMES


def weights_in(scratch: Path, name: str) -> Path:
    """Where an export keeps weights that it makes, in a folder that goes with it."""
    return scratch / f"{name}.safetensors"


def outcomes_in(weights: Path) -> Path:
    """Where an export keeps what such weights make of every single image of the search split, beside them."""
    return weights.with_suffix(".outcomes")
