"""Whole searches on the real digits with a small untrained model: seconds each."""

from pathlib import Path
from typing import Any

import torch

from objectives.runtime.progress import Step
from search import SearchConfig
from search.driver.observer import Observer
from search.driver.outlook import Outlook
from search.run.summary import RunSummary
from search.trial import Proposal, Trial
from spaces.models.create import ModelConfig, create_model
from spaces.tensors import save_tensors

OPTIONS: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "model_kwargs": {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "num_classes": 10,
    "mean": [0.3],
    "std": [0.37],
    "crop_pct": 1.0,
    "dataset": "digits",
    "hflip": 0.0,
    "batch_size": 32,
    "calibration_size": 256,
    "profile_images": 64,
    "tokens": False,
    "drop": False,
    "steps": 3,
    "lr": 5e-4,
    "target": ["flops=60%"],
    "trials": 9,
    "device": "cpu",
    "threads": 1,
}

FRAMES = {"tokens": True, "drop": True}  # as by default; measuring them is most of what a short launch computes

TIMES = ["seconds", "ended"]  # columns of trials.csv that two searches differ in


class Silent(Observer):
    """Keeps what it was told, and stops the search where it is asked to."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at, self.trials, self.steps = stop_at, list[Trial](), 0
        self.notices, self.said, self.told = list[str](), list[str](), list[str]()
        self.stages: dict[str, list[tuple[int, int]]] = {}  # done, and in all
        self.outlook: Outlook | None = None

    def stage(self, what: str, done: int, total: int) -> None:
        self.told.append(what)
        self.stages.setdefault(what, []).append((done, total))

    def began(self, directory: Path, summary: RunSummary, outlook: Outlook, steps: int) -> None:
        self.outlook = outlook

    def started(self, proposal: Proposal) -> None:
        if proposal.number == self.stop_at:
            raise KeyboardInterrupt

    def step(self, number: int, step: Step) -> None:
        self.steps += 1

    def finished(self, trial: Trial, summary: RunSummary, count: int) -> None:
        self.trials.append(trial)

    def say(self, text: str) -> None:
        self.said.append(text)

    def notice(self, text: str) -> None:
        self.notices.append(text)
        self.told.append(text)


def config_of(folder: Path, **options: Any) -> SearchConfig:
    checkpoint = folder / "dense.safetensors"
    if not checkpoint.exists():
        torch.manual_seed(0)
        model = create_model(ModelConfig(model=OPTIONS["model"], num_classes=10, model_kwargs=OPTIONS["model_kwargs"]))
        save_tensors(checkpoint, model.state_dict())
    output = options.pop("output", str(folder / "run"))
    return SearchConfig.from_flat({**OPTIONS, "checkpoint": str(checkpoint), "output": output, **options})
