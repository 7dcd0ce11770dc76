"""Images: train, search and test splits kept apart, with the transforms of the model's own data configuration.

Candidates are fine-tuned on `train` and selected on `search`; `test` is touched by reports only.
"""

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
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
_KNOWN = ("torch/", "hfds/", *_STREAMED)
_TRAIN_FOLDERS = ("train", "training")
_TEST_FOLDERS = ("test", "val", "validation", "valid", "eval")
_CACHE_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, how they are split, and how training images are varied. Names are timm's where timm has one.

    Attributes:
        dataset: data set in the words of timm.data.create_dataset (torch/cifar10, hfds/...,
            wds/...), or digits; empty for a folder.
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
        crop_padding: for images that already have the model's size: pad by so many pixels and
            crop at random, in place of resized crops.
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
        if self.dataset not in ("", DIGITS) and not self.dataset.startswith(_KNOWN):
            raise ConfigError(f"dataset must be empty, {DIGITS} or begin with {', '.join(_KNOWN)}: got {self.dataset!r}")
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


class _RandomStream:
    """Random numbers of its own: a state of the CPU's generators that holds inside `with`, and goes on in the next one."""

    def __init__(self, seed: int) -> None:
        python, numpy = random.Random(seed).getstate(), np.random.RandomState(seed % 2**32).get_state()
        self._other = python, numpy, torch.Generator().manual_seed(seed).get_state()

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()

    def _swap(self) -> None:
        now = random.getstate(), np.random.get_state(), torch.get_rng_state()
        python, numpy, cpu = self._other
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        self._other = now


class Data:
    """The three splits of one data set for one model.

    Args:
        config: which images.
        preprocessing: `spaces.models.preprocessing` of the model.
        classes: of the model; bounds the labels of a data set that does not tell its classes.

    Attributes:
        num_classes: of the data set; None where it does not tell.

    Raises:
        DataError: no images, fewer than two classes, splits of different classes or of the same images, an unknown split.
    """

    def __init__(self, config: DataConfig, preprocessing: dict[str, Any], classes: int | None = None) -> None:
        self.config = config
        self.preprocessing = preprocessing
        self._mode = _image_mode(preprocessing["input_size"][0])
        self._bases, self._parts = _splits(config, self._mode)
        self.num_classes = _check_classes(self._bases, config)
        self._limit = classes if self.num_classes is None else self.num_classes
        self._cache: dict[SplitName, list[tuple[Tensor, Tensor]]] = {}
        self._check_first_image()

    def size(self, split: SplitName) -> int | None:
        """Images in a split; None where it is streamed."""
        part = self._parts[split]
        return None if part is None else len(part)

    def training(self, steps: int, seed: int, batch_size: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """`steps` batches of varied training images ([B, C, H, W] float32, labels [B] int64).

        The same for the same seed and number of workers, whatever else draws random numbers in between.

        Raises:
            DataError: a label that is no class.
        """
        batch = batch_size or self.config.batch_size
        transform, part = self._transform(training=True), self._parts["train"]
        batches: Iterator[Any]
        if part is None:
            batches = islice(self._endless(transform, batch, seed), steps)
        else:
            view = _View(self._bases["train"], part, transform)
            sampler = _Shuffled(len(view), steps * batch, seed)
            batches = iter(self._loader(view, batch, sampler=sampler, generator=torch.Generator().manual_seed(seed)))
        return self._labelled(_drawn_apart(batches, seed), "train")

    def calibration(self) -> Iterator[Tensor]:
        """Batches of unvaried training images without labels, [B, C, H, W]; `calibration_size` in all, or all there are."""
        transform, size, part = self._transform(training=False), self.config.calibration_size, self._parts["train"]
        batch, seed = min(64, self.config.eval_batch_size), self.config.split_seed
        if part is None:
            return _first(self._stream("train", transform, batch, seed), size)
        order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))
        return _first(iter(self._loader(_View(self._bases["train"], part[order[:size]], transform), batch)), size)

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
        transform, batch, part = self._transform(training=False), self.config.eval_batch_size, self._parts[split]
        if part is None:
            return self._labelled(self._stream(split, transform, batch, seed=0), split)
        return self._labelled(iter(self._loader(_View(self._bases[split], part, transform), batch)), split)

    def _loader(self, view: Dataset[Any], batch: int, **options: Any) -> DataLoader[Any]:
        workers = self.config.workers
        if workers is None:
            in_memory = self.config.dataset == DIGITS or hasattr(self._bases["train"], "data")
            workers = 0 if in_memory else min(4, os.cpu_count() or 1)
        return DataLoader(view, batch_size=batch, num_workers=workers, pin_memory=torch.cuda.is_available(), **options)

    def _stream(self, split: SplitName, transform: Callable[[Any], Tensor], batch: int, seed: int) -> Iterator[Any]:
        """One pass over a streamed split, in a process of its own, so that every pass begins anew."""
        base = cast(Any, self._bases[split])
        base.transform = transform
        generator = torch.Generator().manual_seed(seed)
        return iter(DataLoader(base, batch_size=batch, num_workers=self.config.workers or 1, generator=generator))

    def _endless(self, transform: Callable[[Any], Tensor], batch: int, seed: int) -> Iterator[Any]:
        """Passes over the streamed training split, each in another order."""
        for epoch in count():
            cast(Any, self._bases["train"]).set_epoch(epoch)
            batches = self._stream("train", transform, batch, seed + epoch)
            if (first := next(batches, None)) is None:
                raise DataError(f"no images in {self.config.data_dir} (split {self.config.train_split!r})")
            yield first
            yield from batches

    def _labelled(self, batches: Iterator[Any], split: SplitName) -> Iterator[tuple[Tensor, Tensor]]:
        """`batches`, after a look at their labels."""
        for images, labels in batches:
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or (self._limit is not None and high >= self._limit):
                allowed = "" if self._limit is None else f" to {self._limit - 1}"
                raise DataError(f"the {split} split has the label {low if low < 0 else high}: labels must be from 0{allowed}")
            yield images, labels

    def _check_first_image(self) -> None:
        part = self._parts["train"]
        if part is None:
            return
        where = f"{self.config.dataset or 'images'} in {self.config.data_dir}"
        try:
            image, _ = self._bases["train"][int(part[0])]
        except Exception as error:  # every reader raises its own kind
            raise DataError(f"cannot read the {where}: {_first_line(error)}") from error
        _, height, width = self.preprocessing["input_size"]
        if self.config.crop_padding and image.size != (width, height):
            found = "x".join(map(str, image.size))
            raise DataError(f"crop_padding is for images of the model's size, {width}x{height}, but the {where} have {found}")

    def _transform(self, training: bool) -> Callable[[Any], Tensor]:
        pre = self.preprocessing
        options: dict[str, Any] = {"interpolation": pre["interpolation"], "mean": pre["mean"], "std": pre["std"]}
        config, size = self.config, tuple(pre["input_size"])
        steps: list[Callable[[Any], Any]] = [partial(_in_mode, self._mode)]
        if training:
            options.update(is_training=True, hflip=config.hflip, auto_augment=config.aa, scale=config.scale)
            options.update(color_jitter=config.color_jitter or None)
        else:
            options.update(crop_pct=pre["crop_pct"], crop_mode=pre["crop_mode"])
        if training and config.crop_padding:
            steps.append(RandomCrop(size[1:], padding=config.crop_padding))
            whole = size[2] / size[1]  # the aspect ratio whose only crop is the whole image
            options.update(scale=(1.0, 1.0), ratio=(whole, whole))
        composed: Callable[[Any], Tensor] = Compose([*steps, create_transform(size, **options)])
        return composed


def _image_mode(channels: int) -> str:
    if channels not in (1, 3):
        raise DataError(f"the model takes images of {channels} channels, but images are read as grey (1) or RGB (3)")
    return "L" if channels == 1 else "RGB"


def _in_mode(mode: str, image: Any) -> Any:
    return image if image.mode == mode else image.convert(mode)


def _drawn_apart(batches: Iterator[Any], seed: int) -> Iterator[Any]:
    """`batches`, made from random numbers of their own."""
    stream, end = _RandomStream(seed), object()
    while True:
        with stream:
            batch = next(batches, end)
        if batch is end:
            return
        yield batch


def _first(batches: Iterator[Any], wanted: int) -> Iterator[Tensor]:
    """The first `wanted` images, without their labels."""
    for images, _ in batches:
        yield images[:wanted]
        wanted -= len(images)
        if wanted <= 0:
            return


def _splits(config: DataConfig, mode: str) -> tuple[dict[SplitName, Dataset[Any]], dict[SplitName, Tensor | None]]:
    """The data set behind every split, and the indices that belong to it (None: all of a stream)."""
    if config.dataset == DIGITS:
        bases: dict[SplitName, Dataset[Any]] = {name: Digits(name) for name in get_args(SplitName)}
        return bases, {name: torch.arange(len(cast(Sized, base))) for name, base in bases.items()}
    names = _folder_splits(config) if not config.dataset else _named_splits(config)
    _check_apart(names)
    bases = {name: _open(config, split, mode, training=name == "train") for name, split in names.items() if split is not None}
    _check_apart({name: _origin(base) for name, base in bases.items()})
    if isinstance(bases["train"], IterableDataset):
        if "search" not in bases:
            raise DataError(f"{config.dataset} is streamed, so nothing can be held out of it: name a --search-split")
        return bases, dict.fromkeys(bases)
    return _hold_out(config, bases)


def _named_splits(config: DataConfig) -> dict[SplitName, str | None]:
    return {"train": config.train_split, "search": config.search_split, "test": config.val_split}


def _check_apart(origins: Mapping[SplitName, object]) -> None:
    """Raise where two splits come from the same place: then candidates would be selected on images that they have seen."""
    seen: dict[object, SplitName] = {}
    for name, origin in origins.items():
        if origin is not None and origin in seen:
            raise DataError(f"the {seen[origin]} and {name} splits are the same images ({origin}): name different splits")
        seen[origin] = name


def _origin(base: Dataset[Any]) -> object:
    """What tells one torchvision split from another; None for other data sets."""
    found = {key: str(getattr(base, key)) for key in ("root", "train", "split", "version") if hasattr(base, key)}
    return ", ".join(f"{key}={value}" for key, value in found.items()) or None


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


def _folder_splits(config: DataConfig) -> dict[SplitName, str | None]:
    """Check an image folder; its split folders, None where it has none."""
    if config.data_dir is None:
        raise DataError("no images: give --data-dir with an image folder, or --dataset with a timm data set name")
    root = Path(config.data_dir)
    if not root.is_dir():
        raise DataError(f"no folder at {root}")
    names = _named_splits(config)
    for name, default in _named_splits(DataConfig()).items():
        chosen = names[name]
        if chosen != default and not (root / str(chosen)).is_dir():  # timm would take the whole folder in its place
            raise DataError(f"{root} has no folder {chosen!r} for the {name} split: it has {_listed(root)}")
    train = next((name for name in (config.train_split, *_TRAIN_FOLDERS) if (root / name).is_dir()), None)
    if train is None:
        _check_class_folders(root)
        return {"train": config.train_split, "search": config.search_split, "test": None}
    others = (name for name in _TEST_FOLDERS if _folders(root / name) and name != config.search_split)
    test = config.val_split if (root / config.val_split).is_dir() else next(others, None)
    return {"train": train, "search": config.search_split, "test": test}


def _check_class_folders(root: Path) -> None:
    """Raise unless the folders of `root` hold images alone: timm names a class for the innermost folder, wherever it is."""
    nested = [name for name in _folders(root) if _folders(root / name)]
    if nested or not _folders(root):
        found = f"{', '.join(nested[:3])} hold folders in turn" if nested else "it has no folders"
        raise DataError(
            f"{root} must have a folder of images for every class, or train/ and val/ with such folders, but {found}: "
            "name splits with --train-split and --val-split"
        )


def _folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".") if root.is_dir() else []


def _listed(root: Path) -> str:
    names = _folders(root)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "no folder"


def _open(config: DataConfig, split: str, mode: str, training: bool) -> Dataset[Any]:
    options: dict[str, Any] = {} if config.dataset.startswith("torch/") else {"input_img_mode": mode}
    streamed = config.dataset.startswith(_STREAMED)
    if streamed:
        options.update(batch_size=config.batch_size, seed=config.split_seed)
    try:
        base = create_dataset(
            config.dataset,
            root=config.data_dir,
            split=split,
            class_map=config.class_map,
            is_training=training and streamed,
            download=config.dataset_download,
            **options,
        )
    except Exception as error:  # every reader raises its own kind; all of it means the same to the user
        where = f"{config.dataset or 'image folder'} in {config.data_dir}, split {split!r}"
        raise DataError(f"cannot open {where}: {_first_line(error)}") from error
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
    if len(set(train.values())) < 2:
        raise DataError(f"{config.data_dir} has {len(train)} class ({', '.join(train)}): at least two are needed")
    for name, classes in maps.items():
        if classes is not None and classes != train:
            odd = sorted(set(classes) ^ set(train))[:3]
            how = f"differing in {', '.join(odd)}" if odd else "the same in another order"
            raise DataError(f"the {name} split has {len(classes)} classes, train has {len(train)} ({how})")
    return max(train.values()) + 1


def _classes(base: Dataset[Any]) -> dict[str, int] | None:
    """Class name -> label, where the data set tells."""
    reader = getattr(base, "reader", None)
    found = getattr(reader, "class_to_idx", None) or getattr(base, "class_to_idx", None) or getattr(base, "classes", None)
    if not found:
        return None
    pairs = found.items() if isinstance(found, dict) else zip(found, range(len(found)), strict=True)
    return {str(name): int(label) for name, label in pairs}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
