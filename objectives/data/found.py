"""What was found in the data before anything was computed: what every split is read from, and what is odd about it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from torch.utils.data import Dataset

from objectives.data.class_order import first_difference, in_order, natural_key
from objectives.data.config import DIGITS, DataConfig
from objectives.data.folders import ImageFolder, counted, listed, path_text, some
from objectives.data.split_folders import SPLIT_FOLDERS, SplitFolders, has_classes, ignored_folders
from objectives.pictures.sources import SplitName
from spaces.errors import DataError

_FEW = 100  # images of a held-out split, below which its errors are told with what they are worth
_OPTIONS: Mapping[SplitName, str] = {"search": "--search-split", "test": "--val-split"}
_SPLITS: tuple[SplitName, ...] = ("train", "search", "test")
_HELD_OUT = _SPLITS[1:]  # what errors are measured on


@dataclass(frozen=True, kw_only=True)
class FoundSplit:
    """One split as it is read.

    Attributes:
        where: its folder or its name in the data set; what it is held out of, where it has none of its own.
        images: that it has; None where it is streamed.
        classes: label -> images; None where labels are not known before the images are read.
        held_out: whether it is a part of the training split's images.
    """

    where: str
    images: int | None
    classes: Counter[int] | None
    held_out: bool

    @property
    def text(self) -> str:
        """In one line: `36 images of 2 classes in data/train`."""
        count = "a stream of images" if self.images is None else f"{self.images:,} image{'s' if self.images != 1 else ''}"
        classes = f" of {len(self.classes)} class{'es' if len(self.classes) != 1 else ''}" if self.classes is not None else ""
        return f"{count}{classes}{', held out of' if self.held_out else ' in'} {self.where}"


class Found:
    """What is read of a data set.

    Args:
        config: which images.
        bases: the data set behind every split.
        parts: the indices that belong to it; None for a stream.

    Attributes:
        splits: train, search and test.
        class_folders: of the splits that have folders of their own.
    """

    def __init__(
        self, config: DataConfig, bases: Mapping[SplitName, Dataset[Any]], parts: Mapping[SplitName, Tensor | None]
    ) -> None:
        self.config = config
        self.splits = {name: _split(config, name, bases, parts[name]) for name in _SPLITS if name in bases}
        self.class_folders = {
            name: base.found for name, base in bases.items()
            if isinstance(base, ImageFolder) and not self.splits[name].held_out
        }  # fmt: skip
        self._labels = {} if not self.class_folders else cast(ImageFolder, bases["train"]).class_to_idx

    @property
    def class_order(self) -> str | None:
        """What the labels follow: timm, torchvision, or `class map FILE`; None where the data set has labels of its own."""
        if self.config.class_map is not None:
            return f"class map {Path(self.config.class_map).name}"
        return self.config.class_order if self.class_folders else None

    @property
    def folders(self) -> list[str] | None:
        """Class folders by their labels, as they are called on disk; None where there are none, or a map names the classes."""
        if not self.class_folders or self.config.class_map is not None:
            return None
        return in_order(self.class_folders["train"].folders.values(), self.config.class_order)

    def lines(self) -> Iterator[str]:
        """What is read, a line for every split, and what is not."""
        for name, split in self.splits.items():
            yield f"{name}: {split.text}"
        hidden = [path_text(Path(split.root.name) / name) for split in self.class_folders.values() for name in split.hidden]
        ignored = [*self.ignored, *hidden, *self._beside]
        if ignored:
            yield f"not read: {some(ignored, 8)}{self._use_of_ignored}"
        left_out = sum((found.left_out for found in self.class_folders.values()), Counter[str]())
        if left_out:
            total = left_out.total()
            files = "1 file that is no image" if total == 1 else f"{total:,} files that are no images"
            yield f"left out: {files} ({counted(left_out)})"

    def warnings(self) -> Iterator[str]:
        """What may make a figure mean less than it seems, a sentence each."""
        yield from self._unlike_torchvision()
        yield from self._unmapped()
        for found in self.class_folders.values():
            if found.empty and self.config.class_map is None:
                yield (
                    f"{path_text(found.root)} has folders without images, which are no classes: {some(found.empty)} "
                    "(where the model has outputs for them, name all classes with --class-map)"
                )
        if self.config.class_map is not None and self.config.class_order != "timm":
            yield f"the class map gives the labels: --class-order {self.config.class_order} has no effect"
        for name in _HELD_OUT:
            yield from self.few(name)

    def few(self, name: SplitName) -> Iterator[str]:
        """What an error on a split of few images is worth."""
        images = self.splits[name].images
        if images is not None and images < _FEW:
            points = 100 * (0.1 * 0.9 / images) ** 0.5
            few = f"the {name} split has {images} image{'s' if images != 1 else ''}"
            yield f"{few}: an error of 10 % is known to ±{points:.1f} points"

    def counted(self, name: SplitName, images: int) -> bool:
        """Take note of how many images a stream was found to have; whether that was not known."""
        unknown = self.splits[name].images is None
        self.splits[name] = replace(self.splits[name], images=images)
        return unknown

    def check_sizes(self) -> None:
        """Raise where a held-out split is smaller than was asked for.

        Raises:
            DataError: its errors would say nothing.
        """
        least = self.config.least_images
        for name in _HELD_OUT:
            split = self.splits[name]
            if split.images is not None and split.images < least:
                way = f"hold out more with --search-size {least}" if split.held_out else f"name another with {_OPTIONS[name]}"
                raise DataError(
                    f"the {name} split has {split.text}, at least {least} images are wanted: "
                    f"{way}, or allow so few with --least-images {max(split.images, 1)}"
                )

    @property
    def _beside(self) -> list[str]:
        """Images beside the folders of the splits."""
        root = Path(str(self.config.data_dir))
        if not self.class_folders or self.class_folders["train"].root == root:
            return []
        count = len(listed(root).images)
        return [f"{count} image{'s' if count != 1 else ''} beside the splits"] if count else []

    @property
    def _use_of_ignored(self) -> str:
        """Options that a folder beside the splits would do for."""
        root = Path(str(self.config.data_dir))
        options = [_OPTIONS[name] for name in _HELD_OUT if self.splits[name].held_out]
        usable = [name for name in self.ignored if name.casefold() in SPLIT_FOLDERS and has_classes(root / name)]
        return f" ({' or '.join(options)} can name {some(usable)})" if options and usable else ""

    @cached_property
    def ignored(self) -> list[str]:
        """Folders of the image folder beside its splits that none of them reads."""
        if not self.class_folders:
            return []
        roots = {name: found.root for name, found in self.class_folders.items()}
        used = SplitFolders(train=roots["train"], search=roots.get("search"), test=roots.get("test"))
        return ignored_folders(Path(str(self.config.data_dir)), used)

    def _unlike_torchvision(self) -> Iterator[str]:
        names = self.folders
        if names is None or self.config.class_order != "timm":
            return
        if (label := first_difference(names)) is not None:
            other = in_order(names, "torchvision")[label]
            yield (
                "the labels follow timm's order of class folders, and torchvision's ImageFolder has another: "
                f"label {label} is {path_text(names[label])} here and {path_text(other)} there: a model that was trained with "
                "ImageFolder needs --class-order torchvision (one with another order: --class-map FILE)"
            )
        for one, other in pairwise(names):
            if natural_key(one) == natural_key(other):
                yield (
                    f"timm leaves open whether {path_text(one)} or {path_text(other)} has the lower label; "
                    f"here it is {path_text(one)} (else: --class-map FILE)"
                )

    def _unmapped(self) -> Iterator[str]:
        """What a class map and the folders do not share."""
        if self.config.class_map is None:
            return
        for found in self.class_folders.values():
            unknown = {name: len(files) for name, files in found.images.items() if name not in self._labels}
            if unknown:
                images = f"{sum(unknown.values())} images of {some(unknown)}"
                yield f"{path_text(found.root)}: {images} are left out, which {self.config.class_map} does not name"
            lacking = [name for name in self._labels if name not in found.folders]
            if lacking:
                yield f"{path_text(found.root)} has no images of {some(lacking)}, which {self.config.class_map} names"


def _split(config: DataConfig, name: SplitName, bases: Mapping[SplitName, Dataset[Any]], part: Tensor | None) -> FoundSplit:
    base = bases[name]
    held_out = name != "train" and base is bases["train"]
    named: str | None = {"train": config.train_split, "search": config.search_split, "test": config.val_split}[name]
    where = config.dataset if config.dataset == DIGITS else f"{config.dataset} ({config.train_split if held_out else named})"
    classes = None
    if isinstance(base, ImageFolder):
        where = path_text(base.found.root)
        assert part is not None
        classes = Counter(base.samples[index][1] for index in part.tolist())
    return FoundSplit(where=where, images=None if part is None else len(part), classes=classes, held_out=held_out)
