"""A long fine-tune by one process that takes the way of several: NCCL, shared gradients, sums between processes."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from gpu.models import BATCH, evaluator_of, fashion
from gpu.rows import Figures
from gpu.setting import Setting
from objectives.evaluator import Evaluator
from objectives.runtime.distributed import ALONE, Group, connect, free_port, leave_group, share_gradients, sum_over_processes
from objectives.training.config import TrainingConfig
from objectives.training.epochs import train
from objectives.training.long_finetune import Course, Trained


class Connected(Group):
    """A group of one whose gradients and figures go the way of larger groups."""

    def wrap(self, model: nn.Module) -> nn.Module:
        return share_gradients(model)

    def total(self, *values: float) -> list[float]:
        return sum_over_processes(values)


def measure(unit: str, setting: Setting, known: Mapping[str, Figures]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same fine-tune of the model at half of its MACs, without a group and with one."""
    small = {"batch_size": BATCH} if not setting.tiny else {}
    evaluator = evaluator_of(fashion(setting, **small), setting, "fashion")
    epochs = 1 if setting.tiny else int(unit.split()[0])
    for name in ("alone", "through NCCL" if setting.on_gpu else "through gloo"):
        if name not in known:
            group = ALONE if name == "alone" else Connected()
            if group != ALONE:
                connect(0, 1, "127.0.0.1", free_port(), evaluator.dense.device)
            trained = _trained(evaluator, epochs, group)
            leave_group()
            last = trained.epochs[-1]
            yield name, {
                "error before": trained.start_error, "error after": last.error, "loss": last.loss,
                "seconds an epoch": trained.seconds / epochs,
            }  # fmt: skip


def _trained(evaluator: Evaluator, epochs: int, group: Group) -> Trained:
    dense = evaluator.dense
    allocation = dense.space.decode(0.5, lambda allocation: dense.costs.load(allocation, {"macs": dense.costs.dense["macs"]}))
    course = Course(
        config=replace(TrainingConfig(), finetune_epochs=epochs),
        finetune=dense.objective.finetune,
        data=dense.data,
        classes=int(dense.model.num_classes),  # type: ignore[arg-type]
        seed=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        model = evaluator.build(allocation)
        return train(model, course, dense.teacher, Path(folder) / "checkpoint.safetensors", group)[1]
