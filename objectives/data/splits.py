"""Which images belong to which split: folders read by class, other data sets opened by timm; held out where a split lacks."""

from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any, cast, get_args

import torch
from timm.data import create_dataset
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from objectives.data.class_order import in_order
from objectives.data.config import DIGITS, STREAMED, DataConfig, image_folder
from objectives.data.folders import ClassFolders, ImageFolder, Labels, mapped, path_text, read_class_folders, some
from objectives.data.shared_images import check_no_shared
from objectives.data.split_folders import find_split_folders
from objectives.pictures.digits import CLASSES, Digits
from objectives.pictures.options import Mode
from objectives.pictures.sources import SplitName
from spaces.errors import DataError, first_line


def open_splits(config: DataConfig, mode: Mode) -> tuple[dict[SplitName, Dataset[Any]], dict[SplitName, Tensor | None]]:
    """The data set behind every split, and the indices that belong to it (None: all of a stream)."""
    if config.dataset == DIGITS:
        bases: dict[SplitName, Dataset[Any]] = {name: Digits(name) for name in get_args(SplitName)}
        return bases, {name: torch.arange(len(cast(Sized, base))) for name, base in bases.items()}
    bases = _named_splits(config, mode) if config.dataset else _folder_splits(config)
    _check_apart({name: _origin(base) for name, base in bases.items()})
    if isinstance(bases["train"], IterableDataset):
        if "search" not in bases:
            raise DataError(f"{config.dataset} is streamed, so nothing can be held out of it: name a --search-split")
        return bases, dict.fromkeys(bases)
    return _hold_out(config, bases)


def _named_splits(config: DataConfig, mode: Mode) -> dict[SplitName, Dataset[Any]]:
    """Splits of a data set that timm knows."""
    names: dict[SplitName, str | None] = {"train": config.train_split, "search": config.search_split, "test": config.val_split}
    _check_apart(names)
    return {name: _open(config, split, mode, training=name == "train") for name, split in names.items() if split is not None}


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


def _folder_splits(config: DataConfig) -> dict[SplitName, Dataset[Any]]:
    """Splits of an image folder. The training split says which labels its classes have in all of them."""
    folders = find_split_folders(image_folder(config), config.train_split, config.search_split, config.val_split)
    roots: dict[SplitName, Path | None] = {"train": folders.train, "search": folders.search, "test": folders.test}
    _check_apart({name: None if root is None else root.resolve() for name, root in roots.items()})
    found = {name: read_class_folders(root) for name, root in roots.items() if root is not None}
    check_no_shared({str(name): split for name, split in found.items()})
    labels = _labels(config, found["train"])
    for name, split in found.items():
        if config.class_map is None:
            _check_same_classes(name, split, found["train"])
        elif not any(key in labels for key in split.folders):
            raise DataError(f"{config.class_map} names none of the folders of {path_text(split.root)}: it has {some(labels)}")
    return {name: ImageFolder(split, labels) for name, split in found.items()}


def _labels(config: DataConfig, train: ClassFolders) -> Labels:
    """Class -> label."""
    if config.class_map is not None:
        return mapped(config.class_map, train.root)
    classes = {folder: name for name, folder in train.folders.items()}
    return {classes[folder]: label for label, folder in enumerate(in_order(classes, config.class_order))}


def _check_same_classes(name: SplitName, split: ClassFolders, train: ClassFolders) -> None:
    """Raise unless a split has the classes of the training split, which must be the model's."""
    pairs = ((train, split), (split, train))
    odd = [text for one, other in pairs if (text := _alone(one, other))]
    if odd:
        raise DataError(
            f"the {name} split has {len(split.folders)} classes, train has {len(train.folders)}: {'; '.join(odd)}: "
            "every split must have a folder with images for every class of the model, and no other folder"
        )


def _alone(one: ClassFolders, other: ClassFolders) -> str:
    """What one split has and another lacks."""
    missing = sorted(set(one.folders) - set(other.folders))
    empty = [name for name in missing if one.folders[name] in other.empty]
    told = f" ({some(empty)} in {path_text(other.root.name)} without images)" if empty else ""
    return f"{some(missing)} in {path_text(one.root.name)} alone{told}" if missing else ""


def _open(config: DataConfig, split: str, mode: Mode, training: bool) -> Dataset[Any]:
    options: dict[str, Any] = {}
    streamed = config.dataset.startswith(STREAMED)
    if not config.dataset.startswith("torch/"):  # what is left as it is is converted by `Reading`; tfds/ gives arrays
        options["input_img_mode"] = mode if config.dataset.startswith("tfds/") else ""
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
        raise DataError(f"cannot open {where}: {first_line(error)}") from error
    if streamed:  # timm gives every process of torch.distributed other shards, where all must see the same batches
        base.reader.dist_rank, base.reader.dist_num_replicas = 0, 1
    if not isinstance(base, IterableDataset) and len(base) == 0:
        raise DataError(f"no images in {config.data_dir} (split {split!r})")
    return cast(Dataset[Any], base)


def count_classes(bases: dict[SplitName, Dataset[Any]], config: DataConfig) -> int | None:
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


def name_classes(bases: dict[SplitName, Dataset[Any]], config: DataConfig) -> list[str] | None:
    """Names of the classes in the order of their labels; None where the data set does not tell, or not one name for each."""
    if config.dataset == DIGITS:
        return [str(digit) for digit in range(CLASSES)]
    names = {label: name for name, label in (_classes(bases["train"]) or {}).items()}
    one_each = len(names) == len(_classes(bases["train"]) or {}) and sorted(names) == list(range(len(names)))
    return [names[label] for label in range(len(names))] if names and one_each else None


def _classes(base: Dataset[Any]) -> dict[str, int] | None:
    """Class name -> label, where the data set tells."""
    reader = getattr(base, "reader", None)
    found = getattr(reader, "class_to_idx", None) or getattr(base, "class_to_idx", None) or getattr(base, "classes", None)
    if not found:
        return None
    pairs = found.items() if isinstance(found, dict) else zip(found, range(len(found)), strict=True)
    return {str(name): int(label) for name, label in pairs}
