"""The job of a long fine-tune: a value that every process that takes part is given, and what each of them does."""

import copy
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from objectives.dense_model import DenseModel
from objectives.objective import Objective
from objectives.runtime.distributed import Group
from objectives.runtime.progress import Progress
from objectives.training.config import TrainingConfig
from objectives.training.epochs import train
from objectives.training.long_finetune import Course, Trained
from objectives.training.state import read_note
from spaces.allocation import Allocation
from spaces.vit import describe, resize

FOLDER = ".training"  # of the checkpoints, in the folder of the exports


@dataclass(frozen=True, kw_only=True)
class LongFinetune:
    """A picklable value from which any process that sees the run's files takes part in the long fine-tune of one point.

    Attributes:
        objective: of the run.
        config: how to train.
        space, allocation: shapes of the model.
        seed: of the run.
        label: of the point, which tells the recipe that made it, if one did.
        name: of the point, for files.
        folder: of the checkpoint, absolute.
    """

    objective: Objective
    config: TrainingConfig
    space: str
    allocation: Mapping[str, int]
    seed: int
    label: str | None
    name: str
    folder: Path

    def epochs_done(self, dense: DenseModel) -> int:
        """How many epochs the checkpoint holds."""
        note = read_note(self.checkpoint(dense), self.course(dense).mark)
        return 0 if note is None else len(note["epochs"])

    def take_part(self, dense: DenseModel, group: Group, progress: Progress, parts: int) -> None:
        """What every process of a group does; the result is in the checkpoint."""
        model = copy.deepcopy(dense.model)
        resize(model, describe(dense.model, self.space, self.objective.multiple), Allocation(self.allocation))
        model.load_state_dict(load_file(self.start))
        checkpoint = self.checkpoint(dense)
        train(model, self.course(dense), dense.teacher, checkpoint, group, progress, parts)

    def report(self, trained: Trained) -> dict[str, Any]:
        """What an export says of it, as JSON values."""
        lr = self.config.finetune_lr or self.objective.finetune.rate
        return {**asdict(self.config), "finetune_lr": lr, **asdict(trained), "seconds": trained.seconds, "seed": self.seed}

    def remove(self, dense: DenseModel) -> None:
        """The export is whole: its checkpoint is not needed any more."""
        self.checkpoint(dense).unlink(missing_ok=True)
        self.start.unlink(missing_ok=True)
        shutil.rmtree(self.notes, ignore_errors=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def course(self, dense: DenseModel) -> Course:
        """All that it follows from besides the weights that it begins with, which the conditions determine."""
        return Course(
            config=self.config,
            finetune=self.objective.finetune,
            data=dense.data,
            classes=int(dense.model.num_classes),  # type: ignore[arg-type]
            seed=self.seed,
            conditions=(dense.fingerprint, self.space, sorted(self.allocation.items()), self.label),
        )

    def checkpoint(self, dense: DenseModel) -> Path:
        """Named for the trial and all that its state depends on, so that the same command finds it again."""
        return self.folder / f"{self.name}-{self.course(dense).mark[:12]}.safetensors"

    @property
    def start(self) -> Path:
        """File of the weights that it begins with, for other processes."""
        return self.folder / f"{self.name}-start.safetensors"

    @property
    def notes(self) -> Path:
        """Where Ray Train keeps its own: nothing that is needed afterwards."""
        return self.folder / f"{self.name}-ray"
