"""The learning rate that a run has probed for its fine-tunes, in a file of the run directory."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from objectives.training.config import FinetuneConfig
from spaces.errors import RunError
from spaces.files import write_json
from spaces.schema import NUMBER, POSITIVE, SHARE, WHOLE, Maybe, read_json

RATE = "rate.json"

_PROBE = {"macs": SHARE, "lr": Maybe(POSITIVE), "steps": WHOLE, "kl": Maybe(NUMBER)}
_SCHEMA = {"lr": Maybe(POSITIVE), "steps": WHOLE, "probes": [_PROBE]}


@dataclass(frozen=True, kw_only=True)
class RateProbe:
    """One fine-tune that was no trial.

    Attributes:
        macs: share of the dense model's MACs that the allocation keeps.
        lr: peak learning rate; None for the candidate as built.
        steps: optimiser steps.
        kl: divergence from the dense model after it, in nats, on the rung images; None where it diverged or was lost.
    """

    macs: float
    lr: float | None
    steps: int
    kl: float | None


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What the fine-tunes of a run are made with.

    Attributes:
        lr: peak learning rate; None where no fine-tune is worth its time, and trials are evaluated as built.
        steps: optimiser steps of a trial.
        probes: what it follows from; none where it is the default.
    """

    lr: float | None
    steps: int
    probes: tuple[RateProbe, ...] = ()

    def save(self, directory: Path) -> None:
        """Write it atomically to a run directory."""
        write_json(directory / RATE, asdict(self))

    @classmethod
    def load(cls, directory: Path) -> "Rate | None":
        """Of the run in a directory; None where there is none.

        Raises:
            RunError: the file cannot be read.
        """
        path = directory / RATE
        try:
            found = read_json(path, _SCHEMA)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunError(f"{path} cannot be read ({error}): restore it, or choose another --output") from error
        probes = tuple(RateProbe(**{name: entry[name] for name in _PROBE}) for entry in found["probes"])
        return cls(lr=found["lr"], steps=found["steps"], probes=probes)


def settled(config: FinetuneConfig, directory: Path) -> FinetuneConfig:
    """How the trials of the run in a directory are fine-tuned: at the rate that it has probed, where none is given.

    Raises:
        RunError: the run's rate cannot be read.
    """
    rate = Rate.load(directory) if config.is_probed else None
    if rate is None:
        return config
    return replace(config, steps=0) if rate.lr is None else replace(config, lr=rate.lr)
