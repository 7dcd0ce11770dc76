"""The dense model of the other parts, trained here, and its errors."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load_file

from gpu.models import BATCH, error_on_test, evaluator_of, fashion
from gpu.rows import Figures
from gpu.setting import Setting
from objectives.training.config import FinetuneConfig
from search.driver.demo import train_dense
from spaces.tensors import save_tensors

_IMAGES = 55_000
_LR = 1.5e-3
_TOLD = 100


def measure(unit: str, setting: Setting, known: Mapping[str, Figures]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Train for the unit's epochs. The weights are written in half precision, which is what they are from then on."""
    if not setting.dense.exists():
        _train(int(unit.split()[0]), setting)
    evaluator = evaluator_of(fashion(setting), setting, "fashion")
    model = evaluator.dense.model
    yield (
        "errors",
        {
            "search split": evaluator.dense.figures.error,
            "test split": error_on_test(evaluator, evaluator.dense.teacher),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "GMACs": evaluator.dense.costs.dense["macs"] / 1e9,
        },
    )


def _train(epochs: int, setting: Setting) -> None:
    config = fashion(setting)
    steps, batch = (20, 32) if setting.tiny else (round(epochs * _IMAGES / BATCH), BATCH)
    raw = setting.dense.with_suffix(".training")

    def progress(what: str, done: int, total: int) -> None:
        if done % _TOLD == 0:
            print(f"{what}: {done} of {total}", flush=True)

    finetune = FinetuneConfig(steps=steps, lr=_LR)
    data = replace(config.data, batch_size=batch)
    train_dense(config.model, data, finetune, raw, seed=1, progress=progress, device=setting.device)
    save_tensors(setting.dense, {name: tensor.to(torch.float16) for name, tensor in load_file(raw).items()})
    raw.unlink()
