"""The models and images of benchmarks/throughput.py: as options of the engine, and as plain data sets for the naive one."""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fashion_mnist
import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import FashionMNIST, ImageFolder
from torchvision.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, ToTensor

from objectives.data.config import DataConfig
from objectives.pictures.digits import Digits
from objectives.training.config import FinetuneConfig
from search.driver.demo_options import OPTIONS as DEMO

Transform = Callable[[Any], Tensor]
SPLITS = {"train": 2000, "search": 300, "val": 100}  # random pictures
CLASSES, PICTURE = 10, (375, 500)  # as large as most of ImageNet's
_OF_THE_RUN = ("target", "band", "trials", "threads", "output", "steps")
_LR = 5e-4


@dataclass(frozen=True)
class Problem:
    """One dense model and its images.

    Attributes:
        data: digits, fmnist or random.
        options: of the engine: model, images and fine-tune.
        device: where candidates are trained.
    """

    data: str
    options: dict[str, Any]
    device: torch.device

    @cached_property
    def config(self) -> DataConfig:
        names = DataConfig.__dataclass_fields__
        return DataConfig(**{name: value for name, value in self.options.items() if name in names})

    @property
    def finetune(self) -> FinetuneConfig:
        return FinetuneConfig(steps=self.options["steps"], lr=self.options["lr"])

    def dense(self) -> nn.Module:
        """The dense model on its device."""
        options = self.options
        model = timm.create_model(options["model"], num_classes=options["num_classes"], **options.get("model_kwargs", {}))
        model.load_state_dict(load_file(options["checkpoint"]))
        dense: nn.Module = model.to(self.device).eval()
        return dense

    def train(self) -> DataLoader[Any]:
        """Batches of varied training images, in a new order in every pass."""
        return self._loader("train", self._varied(), self.config.batch_size, shuffle=True, drop_last=True)

    def split(self, name: str) -> DataLoader[Any]:
        """Batches of the search or the test split, in order."""
        return self._loader(name, self._plain(), self.config.eval_batch_size)

    def _loader(self, split: str, transform: Transform, batch: int, **options: Any) -> DataLoader[Any]:
        workers = min(8, os.cpu_count() or 1) if self.data == "random" else 0
        memory = self.device.type == "cuda"
        return DataLoader(self._images(split, transform), batch, num_workers=workers, pin_memory=memory, **options)

    def _images(self, split: str, transform: Transform) -> Dataset[Any]:
        if self.data == "digits":
            return Transformed(Digits(split), transform)  # type: ignore[arg-type]
        root = Path(self.options["data_dir"])
        if self.data == "random":
            folder: Dataset[Any] = ImageFolder(root / {"test": "val"}.get(split, split), transform)
            return folder
        images = FashionMNIST(str(root), train=split != "test", transform=transform)
        held_out = len(images) - int(self.config.search_size)
        return (
            images if split == "test" else Subset(images, range(held_out) if split == "train" else range(held_out, len(images)))
        )

    def _varied(self) -> Transform:
        """As `DataConfig` says: timm's for pictures of any size, a shift by some pixels for those that fit."""
        config, mean, std = self.config, self.options["mean"], self.options["std"]
        if not config.crop_padding:
            varied: Transform = create_transform(
                (3, *self._size),
                is_training=True,
                scale=config.scale,
                hflip=config.hflip,
                color_jitter=None,
                mean=mean,
                std=std,
            )
            return varied
        flips = [RandomHorizontalFlip(config.hflip)] if config.hflip else []
        composed: Transform = Compose(
            [RandomCrop(self._size, padding=config.crop_padding), *flips, ToTensor(), Normalize(mean, std)]
        )
        return composed

    def _plain(self) -> Transform:
        mean, std = self.options["mean"], self.options["std"]
        plain: Transform = create_transform((3, *self._size), mean=mean, std=std, crop_pct=self.options["crop_pct"])
        return plain if self.data == "random" else Compose([ToTensor(), Normalize(mean, std)])

    @property
    def _size(self) -> tuple[int, int]:
        size = self.options.get("model_kwargs", {}).get("img_size", 224)
        return size, size


class Transformed(Dataset[Any]):
    """A data set of pictures and labels, with a transform of the pictures."""

    def __init__(self, images: Any, transform: Transform) -> None:
        self._images, self._transform = images, transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self._images[index]
        return self._transform(image), label


def problem_of(arguments: argparse.Namespace) -> Problem:
    """The problem that the command line names."""
    folder, device = arguments.output / arguments.data, torch.device(arguments.device)
    if arguments.data == "fmnist":
        options = {**fashion_mnist.OPTIONS, "checkpoint": arguments.checkpoint, "data_dir": arguments.data_dir}
    elif arguments.data == "digits":
        options = {name: value for name, value in DEMO.items() if name not in _OF_THE_RUN}
        options["checkpoint"] = str(folder / f"dense{'-tiny' if arguments.tiny else ''}.safetensors")
    else:
        options = {
            "model": arguments.model, "num_classes": CLASSES, "checkpoint": str(folder / f"{arguments.model}.safetensors"),
            "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 0.9, "data_dir": str(folder / "pictures"),
            "search_split": "search", "val_split": "val",
        }  # fmt: skip
    return Problem(arguments.data, {**options, "space": "heads", "steps": arguments.steps, "lr": _LR}, device)


def is_prepared(problem: Problem) -> bool:
    """Whether all that a problem needs is there."""
    found = [Path(problem.options["checkpoint"])]
    found += [Path(problem.options["data_dir"])] if problem.data != "digits" else []
    return all(path.exists() for path in found)


def prepare(problem: Problem, tiny: bool) -> None:
    """Make what a problem needs and lacks: a dense model of the digits; random weights and pictures.

    Raises:
        SystemExit: Fashion-MNIST or its model is missing; the message says how to get it.
    """
    checkpoint = Path(problem.options["checkpoint"])
    if problem.data == "fmnist":
        if not (Path(problem.options["data_dir"]) / "FashionMNIST" / "raw").is_dir():
            raise SystemExit(f"no Fashion-MNIST in {problem.options['data_dir']}: python benchmarks/fashion_mnist.py")
        if not checkpoint.exists():
            raise SystemExit(f"no model at {checkpoint}: give --checkpoint, or train it: python benchmarks/train_fmnist.py")
        return
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if problem.data == "digits" and not checkpoint.exists():
        train_digits(problem, checkpoint, 20 if tiny else 1800)
    if problem.data == "random":
        draw_pictures(Path(problem.options["data_dir"]))
        if not checkpoint.exists():
            torch.manual_seed(0)
            save_file(timm.create_model(problem.options["model"], num_classes=CLASSES).state_dict(), checkpoint)


def train_digits(problem: Problem, path: Path, steps: int) -> None:
    """Train the demo's model from its random initialisation."""
    from search.config import SearchConfig
    from search.driver.demo import train_dense

    config = SearchConfig.from_flat({**problem.options, "checkpoint": None, "batch_size": 32})
    train_dense(config.model, config.data, FinetuneConfig(steps=steps, lr=2e-3), path)


def draw_pictures(root: Path) -> None:
    """JPEG files of blurred noise in class folders, about as large as ImageNet's, for times alone."""
    random = np.random.default_rng(0)
    for split, count in SPLITS.items():
        for index in range(count):
            path = root / split / f"class{index % CLASSES}" / f"{index:04d}.jpg"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
                smooth = np.asarray(coarse.resize(PICTURE[::-1], Image.Resampling.BICUBIC), dtype=np.int16)
                noisy = smooth + random.integers(-12, 13, (*PICTURE, 3), dtype=np.int16)
                Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=85)
