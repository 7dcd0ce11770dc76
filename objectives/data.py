"""Images: train, search and test splits kept apart, with the transforms of the model's own data configuration.

Candidates are fine-tuned on `train` and selected on `search`; `test` is touched by reports only.
"""

import os
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from timm.data import create_dataset, create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from torchvision.transforms import Compose, RandomCrop

from objectives.digits import CLASSES, Digits
from spaces.errors import ConfigError, DataError

SplitName = Literal["train", "search", "test"]
DIGITS = "digits"
_STREAMED = ("wds/", "tfds/", "hfids/")
_TEST_FOLDERS = ("test", "val", "validation", "valid", "eval")
_CACHE_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, how they are split, and how training images are varied. Names are timm's where timm has one.

    Attributes:
        dataset: data set in the words of timm.data.create_dataset (torch/cifar10, hfds/..., wds/...), or digits; empty for a folder.
        data_dir: image folder (class folders, or train/ and val/ with class folders), or the root of `dataset`.
        train_split: split to train on; the search split is taken from it.
        search_split: split to select on; by default a part of train_split is held out.
        val_split: split to report on; never used to select. A folder without one gives up a part of its images.
        search_size: images held out of train_split for searching: a share below 1, or a number.
        holdout: which images are held out: random ones, or the end of the split.
        class_map: timm's class map file.
        dataset_download: let the data set download itself.
        batch_size: images per training step.
        eval_batch_size: images per evaluation batch.
        workers: loader processes; by default 0 for data held in memory, else up to 4.
        calibration_size: training images for the statistics of the factors.
        scale: range of the area of random resized crops.
        crop_padding: for images that already have the model's size: pad by so many pixels and crop at random, in place of resized crops.
        hflip: probability of a horizontal flip.
        color_jitter: strength of the colour jitter; 0 for none.
        aa: timm's auto-augment policy, e.g. rand-m9-mstd0.5.
        split_seed: seed of the random hold-out.
    """

    dataset: str = ""
    data_dir: str | None = None
    train_split: str = "train"
    search_split: str | None = None
    val_split: str = "validation"
    search_size: float = 0.1
    holdout: Literal["random", "end"] = "random"
    class_map: str | None = None
    dataset_download: bool = False
    batch_size: int = 128
    eval_batch_size: int = 256
    workers: int | None = None
    calibration_size: int = 1024
    scale: tuple[float, float] = (0.6, 1.0)
    crop_padding: int = 0
    hflip: float = 0.5
    color_jitter: float = 0.0
    aa: str | None = None
    split_seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "eval_batch_size", "calibration_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.search_size <= 0:
            raise ConfigError(f"search_size must be positive, got {self.search_size}")
        if self.crop_padding < 0:
            raise ConfigError(f"crop_padding must be at least 0, got {self.crop_padding}")
        if self.holdout not in ("random", "end"):
            raise ConfigError(f"holdout must be random or end, got {self.holdout!r}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"scale must be two areas 0 < low <= high <= 1, got {list(self.scale)}")


class _View(Dataset[tuple[Tensor, int]]):
    """A part of a data set, transformed."""

    def __init__(self, base: Dataset[Any], indices: Tensor, transform: Callable[[Any], Tensor]) -> None:
        self.base, self.indices, self.transform = base, indices, transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.base[int(self.indices[index])]
        return self.transform(image), int(label)


class _Shuffled(Sampler[int]):
    """`count` indices: a new permutation of the data set every epoch, from one seed."""

    def __init__(self, size: int, count: int, seed: int) -> None:
        self.size, self.count, self.seed = size, count, seed

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        epochs = -(-self.count // self.size)
        indices = (int(index) for _ in range(epochs) for index in torch.randperm(self.size, generator=generator))
        return islice(indices, self.count)


class Data:
    """The three splits of one data set for one model.

    Args:
        config: which images.
        preprocessing: `spaces.models.preprocessing` of the model.

    Raises:
        DataError: no images, fewer than two classes, splits of different classes, an unknown split.
    """

    def __init__(self, config: DataConfig, preprocessing: dict[str, Any]) -> None:
        self.config = config
        self.preprocessing = preprocessing
        self._mode = "L" if preprocessing["input_size"][0] == 1 else "RGB"
        self._bases, self._parts = _splits(config, self._mode)
        self.num_classes = _check_classes(self._bases, config)
        self._cache: dict[SplitName, list[tuple[Tensor, Tensor]]] = {}

    def size(self, split: SplitName) -> int | None:
        """Images in a split; None where it is streamed."""
        return len(self._parts[split]) if self._parts[split] is not None else None

    def training(self, steps: int, seed: int, batch_size: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """`steps` batches of varied training images ([B, C, H, W] float32, labels [B] int64); the same for the same seed."""
        batch = batch_size or self.config.batch_size
        transform = self._transform(training=True)
        if self._parts["train"] is None:
            return islice(self._streamed("train", transform, batch), steps)
        view = _View(self._bases["train"], self._parts["train"], transform)
        sampler = _Shuffled(len(view), steps * batch, seed)
        return iter(self._loader(view, batch, sampler=sampler, generator=torch.Generator().manual_seed(seed)))

    def calibration(self) -> Iterator[Tensor]:
        """Batches of unvaried training images without labels, [B, C, H, W]; `calibration_size` in all."""
        transform, size, batch = self._transform(training=False), self.config.calibration_size, min(64, self.config.eval_batch_size)
        if self._parts["train"] is None:
            batches: Iterator[Any] = islice(self._streamed("train", transform, batch), -(-size // batch))
        else:
            indices = self._parts["train"]
            order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(self.config.split_seed))
            batches = iter(self._loader(_View(self._bases["train"], indices[order[:size]], transform), batch))
        return (images for images, _ in batches)

    def evaluation(self, split: SplitName) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of a split in a fixed order; kept in memory after the first pass where they fit in 1 GiB."""
        if split in self._cache:
            return iter(self._cache[split])
        batches = self._evaluation_batches(split)
        size = self.size(split)
        channels, height, width = self.preprocessing["input_size"]
        if size is None or size * channels * height * width * 4 > _CACHE_BYTES:
            return batches
        self._cache[split] = list(batches)
        return iter(self._cache[split])

    def _evaluation_batches(self, split: SplitName) -> Iterator[tuple[Tensor, Tensor]]:
        transform, batch = self._transform(training=False), self.config.eval_batch_size
        if self._parts[split] is None:
            return self._streamed(split, transform, batch)
        return iter(self._loader(_View(self._bases[split], self._parts[split], transform), batch))

    def _loader(self, view: Dataset[Any], batch: int, **options: Any) -> DataLoader[Any]:
        workers = self.config.workers
        if workers is None:
            in_memory = self.config.dataset == DIGITS or self.config.dataset.startswith("torch/")
            workers = 0 if in_memory else min(4, os.cpu_count() or 1)
        return DataLoader(view, batch_size=batch, num_workers=workers, pin_memory=torch.cuda.is_available(), **options)

    def _streamed(self, split: SplitName, transform: Callable[[Any], Tensor], batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        base = cast(Any, self._bases[split])
        base.transform = transform
        return iter(DataLoader(base, batch_size=batch, num_workers=self.config.workers or 1))

    def _transform(self, training: bool) -> Callable[[Any], Tensor]:
        pre = self.preprocessing
        options: dict[str, Any] = {"interpolation": pre["interpolation"], "mean": pre["mean"], "std": pre["std"]}
        config, size = self.config, tuple(pre["input_size"])
        if not training:
            options.update(crop_pct=pre["crop_pct"], crop_mode=pre["crop_mode"])
            return cast(Callable[[Any], Tensor], create_transform(size, **options))
        options.update(hflip=config.hflip, color_jitter=config.color_jitter or None, auto_augment=config.aa)
        if config.crop_padding == 0:
            return cast(Callable[[Any], Tensor], create_transform(size, is_training=True, scale=config.scale, **options))
        whole = create_transform(size, is_training=True, scale=(1.0, 1.0), ratio=(1.0, 1.0), **options)
        return Compose([RandomCrop(size[1:], padding=config.crop_padding), whole])


def _splits(config: DataConfig, mode: str) -> tuple[dict[SplitName, Dataset[Any]], dict[SplitName, Tensor | None]]:
    """The data set behind every split, and the indices that belong to it (None: all of a stream)."""
    if config.dataset == DIGITS:
        bases: dict[SplitName, Dataset[Any]] = {name: Digits(name) for name in get_args(SplitName)}
        return bases, {name: torch.arange(len(cast(Sized, base))) for name, base in bases.items()}
    names: dict[SplitName, str | None] = {"train": config.train_split, "search": config.search_split, "test": config.val_split}
    if not config.dataset:
        config, names["test"] = _folder(config)
    bases = {name: _open(config, split, mode) for name, split in names.items() if split is not None}
    if isinstance(bases["train"], IterableDataset):
        if "search" not in bases:
            raise DataError(f"{config.dataset} is streamed, so nothing can be held out of it: name a --search-split")
        return bases, dict.fromkeys(bases, None)
    return _hold_out(config, bases)


def _hold_out(
    config: DataConfig, bases: dict[SplitName, Dataset[Any]]
) -> tuple[dict[SplitName, Dataset[Any]], dict[SplitName, Tensor | None]]:
    """Take from the training split what the other two lack."""
    size = len(cast(Sized, bases["train"]))
    order = torch.arange(size)
    if config.holdout == "random":
        order = torch.randperm(size, generator=torch.Generator().manual_seed(config.split_seed))
    parts: dict[SplitName, Tensor | None] = {}
    wanted = config.search_size if config.search_size >= 1 else config.search_size * size
    for name in ("test", "search"):
        if name in bases:
            parts[name] = torch.arange(len(cast(Sized, bases[name])))
            continue
        count = max(1, round(wanted))
        if count >= len(order):
            raise DataError(f"holding {count} images out for {name} leaves none of {size} to train on: lower --search-size")
        bases[name], parts[name], order = bases["train"], order[-count:].sort().values, order[:-count]
    parts["train"] = order.sort().values
    return bases, parts


def _folder(config: DataConfig) -> tuple[DataConfig, str | None]:
    """Check an image folder; the name of its test split, or None where it has none."""
    if config.data_dir is None:
        raise DataError("no images: give --data-dir with an image folder, or --dataset with a timm data set name")
    root = Path(config.data_dir)
    if not root.is_dir():
        raise DataError(f"no folder at {root}")
    if not (root / config.train_split).is_dir():
        return config, None  # class folders right below the root
    if (root / config.val_split).is_dir():
        return config, config.val_split
    return config, next((name for name in _TEST_FOLDERS if (root / name).is_dir()), None)


def _open(config: DataConfig, split: str, mode: str) -> Dataset[Any]:
    options: dict[str, Any] = {} if config.dataset.startswith("torch/") else {"input_img_mode": mode}
    if config.dataset.startswith(_STREAMED):
        options.update(batch_size=config.batch_size, seed=config.split_seed)
    training = split == config.train_split
    try:
        base = create_dataset(
            config.dataset,
            root=config.data_dir,
            split=split,
            class_map=config.class_map,
            is_training=training and config.dataset.startswith(_STREAMED),
            download=config.dataset_download,
            **options,
        )
    except Exception as error:  # every reader raises its own kind; all of it means the same to the user
        where = f"{config.dataset or 'image folder'} in {config.data_dir}, split {split!r}"
        raise DataError(f"cannot open {where}: {(str(error).strip().splitlines() or [type(error).__name__])[0]}") from error
    if not isinstance(base, IterableDataset) and len(base) == 0:
        raise DataError(f"no images in {config.data_dir} (split {split!r})")
    return cast(Dataset[Any], base)


def _check_classes(bases: dict[SplitName, Dataset[Any]], config: DataConfig) -> int | None:
    """Number of classes, where the data set tells; every split must agree on them."""
    if config.dataset == DIGITS:
        return CLASSES
    maps = {name: _classes(base) for name, base in bases.items()}
    train = maps["train"]
    if train is None:
        return None
    if len(train) < 2:
        raise DataError(f"{config.data_dir} has {len(train)} class ({', '.join(train) or 'none'}): at least two are needed")
    for name, classes in maps.items():
        if classes is not None and classes != train:
            odd = sorted(set(classes) ^ set(train))[:3]
            raise DataError(f"the {name} split has {len(classes)} classes, train has {len(train)} (differing in {', '.join(odd)})")
    return len(train)


def _classes(base: Dataset[Any]) -> list[str] | None:
    reader = getattr(base, "reader", None)
    found = getattr(reader, "class_to_idx", None) or getattr(base, "class_to_idx", None) or getattr(base, "classes", None)
    if not found:
        return None
    return [str(name) for name in (sorted(found, key=found.get) if isinstance(found, dict) else found)]


