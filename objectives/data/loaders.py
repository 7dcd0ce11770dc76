"""Images: train, search and test splits kept apart, with the transforms of the model's own data configuration.

Candidates are fine-tuned on `train` and selected on `search`; `test` is touched by reports only. Batches come as a model takes
them, or as pixels (`objectives.pictures.pixels`), for who keeps them or computes the rest on another device.
"""

import os
from collections.abc import Callable, Iterator, Sequence, Sized
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torchvision.transforms import Compose

from objectives.data.batches import Shuffled, View, loaded
from objectives.data.config import DataConfig
from objectives.data.found import Found
from objectives.data.splits import count_classes, name_classes, open_splits
from objectives.data.streams import endless_passes, first, one_pass, shares
from objectives.data.variation import training_transform
from objectives.pictures.check import check_pictures
from objectives.pictures.pixels import Pixels
from objectives.pictures.reading import reading_for
from objectives.pictures.sources import Files, SplitName, is_in_memory, pictures_of_splits
from objectives.pictures.transform import Transform, evaluation_transform
from objectives.runtime.distributed import ALONE, Group
from objectives.runtime.progress import Progress
from objectives.runtime.seeding import drawn_apart
from spaces.errors import DataError

CALIBRATION_BATCH = 64
MEMORY_BYTES = 1 << 30
_EPOCH_SEEDS = 7919  # apart from the seeds of a run, which count up from its own


class Data:
    """The three splits of one data set for one model.

    Args:
        config: which images.
        preprocessing: `spaces.models.create.preprocessing` of the model.
        classes: of the model; bounds the labels of a data set that does not tell its classes.
        checked: where an earlier check of the pictures was saved, which is not done again for files that have not changed.
        progress: called with (what, done, in all) while pictures are checked.

    Attributes:
        reading: how a picture becomes what the model's transform takes.
        pixels: how pixels become what the model takes.
        checked: what of the pictures is left out, and what was made of the others.
        num_classes: of the data set; None where it does not tell.
        class_names: in the order of their labels; None where the data set does not tell, or not one for each.

    Raises:
        DataError: no images, fewer than two classes, splits of different classes or of the same images, an unknown split, more
            than 5 % of a split that cannot be read.
    """

    def __init__(
        self,
        config: DataConfig,
        preprocessing: dict[str, Any],
        classes: int | None = None,
        checked: Path | None = None,
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        self.config = config
        self.preprocessing = preprocessing
        self.reading = reading_for(preprocessing["input_size"][0], config.pixel_range, config.background)
        self.pixels = Pixels(preprocessing)
        self._bases, listed = open_splits(config, self.reading.mode)
        self.num_classes = count_classes(self._bases, config)
        self.class_names = name_classes(self._bases, config)
        self._limit = classes if self.num_classes is None else self.num_classes
        self._kept: dict[tuple[SplitName, int | None, Group], list[tuple[Tensor, Tensor]]] = {}
        self._pictures = pictures_of_splits(self._bases, config.dataset or "the image folder", config.data_dir, self.reading)
        lazy = {split: pictures for split, pictures in self._pictures.items() if not is_in_memory(self._bases[split])}
        self.checked = check_pictures(lazy, listed, self.reading, checked, progress)
        self._parts = self.checked.parts
        self._check_padding()

    @cached_property
    def found(self) -> Found:
        """What is read, and what is not."""
        return Found(self.config, self._bases, self._parts)

    @cached_property
    def mark(self) -> str | None:
        """Digest of the files of the training and the search split, and of their labels; None where they are no files."""
        return self.mark_of("train", "search")

    def mark_of(self, *splits: SplitName) -> str | None:
        """Digest of the files of splits, with their sizes and labels; None where they are no files."""
        files = ((self._pictures.get(split), self._parts[split]) for split in splits)
        marks = [found.mark(part.tolist()) for found, part in files if isinstance(found, Files) and part is not None]
        return " ".join(marks) or None

    def size(self, split: SplitName) -> int | None:
        """Images in a split; None where it is streamed."""
        part = self._parts[split]
        return None if part is None else len(part)

    def training(
        self, steps: int, seed: int, batch_size: int | None = None, group: Group = ALONE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """`steps` batches of varied training images ([B, C, H, W] float32, labels [B] int64).

        The same for the same seed, number of workers and group, whatever else draws random numbers in between. Fewer steps
        have the first ones of more.

        Args:
            steps: how many.
            seed: of the order and of the variation.
            batch_size: images of a batch; the configuration's by default.
            group: the processes that share every batch: together they see the images that one would see. Each reads its
                own alone, and varies them in its own way; but of a stream it reads whole batches and keeps its share, as
                large as the others', for which it drops what is left over of a batch that is not full.

        Raises:
            ConfigError: a batch cannot be shared evenly.
            DataError: a label that is no class.
        """
        return self._inputs(self.training_pixels(steps, seed, batch_size, group))

    def training_pixels(
        self, steps: int, seed: int, batch_size: int | None = None, group: Group = ALONE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """`training`, as pixels."""
        transform = self._transform(training=True)
        return self._training(transform, steps, seed, batch_size or self.config.batch_size, group)

    @property
    def epoch_steps(self) -> int:
        """Batches of one pass over the training images, without what is left for a last one that is not full; at least one.

        Raises:
            DataError: the split is streamed and does not tell how many images it has.
        """
        images = self.size("train") or len(cast(Sized, self._bases["train"]))
        if not images:
            raise DataError(f"{self.config.dataset} does not tell how many images its training split has: epochs need that")
        return max(1, images // self.config.batch_size)

    def epoch(
        self, number: int, seed: int, aa: str | None = None, reprob: float = 0.0, group: Group = ALONE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """`epoch_steps` batches: one pass over the training images, varied more strongly than `training` does.

        The same for the same number and seed, whatever was drawn before: what was interrupted can begin an epoch anew.

        Args:
            number: of the epoch, from 0; each has its own order and variation.
            seed: as of `training`.
            aa: timm's auto-augment policy, in place of the configuration's; None for none.
            reprob: probability that a part of an image is erased (timm's random erasing, filled with noise).
            group: as of `training`.

        Raises:
            ConfigError: a batch cannot be shared evenly.
            DataError: a label that is no class, or no number of images.
        """
        transform = self._transform(training=True, auto_augment=aa, re_prob=reprob, re_mode="pixel")
        seed += _EPOCH_SEEDS * number
        return self._inputs(self._training(transform, self.epoch_steps, seed, self.config.batch_size, group, number))

    def _training(
        self, transform: Callable[[Any], Tensor], steps: int, seed: int, batch: int, group: Group, begin: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        share, part = group.divide(batch), self._parts["train"]
        batches: Iterator[Any]
        if part is None:
            endless = endless_passes(self._bases["train"], self.config, transform, batch, seed, begin)
            batches = islice(shares(endless, group), steps)
        else:
            view = self._view("train", part, transform)
            sampler = Shuffled(len(view), steps * batch, seed, group)
            seed = group.seed(seed)
            batches = self._loader(view, share, sampler=sampler, generator=torch.Generator().manual_seed(seed))
        return self._labelled(drawn_apart(batches, seed), "train")

    def calibration(self, limit: int | None = None) -> Iterator[Tensor]:
        """Batches of unvaried training images without labels, [B, C, H, W]; `calibration_size` in all, or all there are.

        Args:
            limit: give the first so many alone.
        """
        return (images for images, _ in self._calibration(limit))

    def labelled_calibration(self, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The same with their labels, [B] int64.

        Raises:
            DataError: a label that is no class.
        """
        return self._labelled(self._calibration(limit), "train")

    def _calibration(self, limit: int | None) -> Iterator[Any]:
        size = self.config.calibration_size if limit is None else min(limit, self.config.calibration_size)
        transform, part = self._transform(training=False), self._parts["train"]
        batch, seed = CALIBRATION_BATCH, self.config.split_seed
        if part is None:
            found = first(one_pass(self._bases["train"], self.config, transform, batch, seed), size)
        else:
            found = self._loader(self._view("train", part[_drawn(len(part), size, seed)], transform), batch)
        return self._inputs(found)

    def evaluation(self, split: SplitName, most: int | None = None, group: Group = ALONE) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of a split in a fixed order; their pixels are kept in memory after the first pass where they fit in 1 GiB.

        No random number is drawn for them that anybody else would see.

        Args:
            split: which.
            most: take so many images of it at most: always the same ones, drawn with `split_seed`; of a stream the first ones.
            group: the processes that take turns at the batches. Each reads its own alone, but of a stream all.
        """
        return self._inputs(self.evaluation_pixels(split, most, group))

    def evaluation_pixels(
        self, split: SplitName, most: int | None = None, group: Group = ALONE, keep: bool = True
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """`evaluation`, as pixels.

        Args:
            split, most, group: as there.
            keep: whether pixels that fit are kept.
        """
        size = self.size(split)
        most = None if most is None or (size is not None and size <= most) else most
        key, images = (split, most, group), most or size
        if key not in self._kept:
            batches = self._evaluation(*key)
            if not keep or images is None or images * self.image_bytes(training=False) > MEMORY_BYTES:
                return batches
            self._kept[key] = list(batches)
        return iter(self._kept[key])

    def _evaluation(self, split: SplitName, most: int | None, group: Group) -> Iterator[tuple[Tensor, Tensor]]:
        transform, batch, part = self._transform(training=False), self.config.eval_batch_size, self._parts[split]
        if part is None:
            stream = one_pass(self._bases[split], self.config, transform, batch, seed=0)
            taken = islice(stream if most is None else first(stream, most), group.rank, None, group.size)
            return self._labelled(taken, split)
        places = torch.cat([torch.zeros(0, dtype=torch.int64), *self.places(len(part), most, group)])
        return self._labelled(self._loader(self._view(split, part[places], transform), batch), split)

    def places(self, size: int, most: int | None = None, group: Group = ALONE) -> Sequence[Tensor]:
        """Which images of a split are in each batch of `evaluation`, as indices into the split.

        Args:
            size: images in the split.
            most, group: as of `evaluation`.
        """
        drawn = torch.arange(size)
        if most is not None and most < size:
            drawn = _drawn(size, most, self.config.split_seed).sort().values
        batches: Sequence[Tensor] = torch.split(drawn, self.config.eval_batch_size)
        return batches[group.rank :: group.size]

    def image_bytes(self, training: bool) -> int:
        """Of the pixels of one image, of a training batch or of evaluation."""
        channels, height, width = self.preprocessing["input_size"]
        return int(channels * height * width) * (1 if self.pixels.are_whole_numbers(self._whole_transform(training)) else 4)

    def _view(self, split: SplitName, part: Tensor, transform: Callable[[Any], Tensor]) -> View:
        return View(self._pictures[split], part, self.reading, transform)

    def _loader(self, view: View, batch: int, **options: Any) -> Iterator[Any]:
        workers = self.config.workers
        if workers is None:
            workers = 0 if is_in_memory(self._bases["train"]) else min(4, os.cpu_count() or 1)
        options.setdefault("generator", torch.Generator().manual_seed(0))  # else a pass draws from the one that dropouts use
        return loaded(view, batch_size=batch, num_workers=workers, pin_memory=torch.cuda.is_available(), **options)

    def _labelled(self, batches: Iterator[Any], split: SplitName) -> Iterator[tuple[Tensor, Tensor]]:
        """`batches`, after a look at their labels."""
        for images, labels in batches:
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or (self._limit is not None and high >= self._limit):
                allowed = "" if self._limit is None else f" to {self._limit - 1}"
                raise DataError(f"the {split} split has the label {low if low < 0 else high}: labels must be from 0{allowed}")
            yield images, labels

    def _check_padding(self) -> None:
        part, (_, height, width) = self._parts["train"], self.preprocessing["input_size"]
        if part is None or not self.config.crop_padding:
            return
        image, _ = self._pictures["train"].read(int(part[0]), self.reading)
        if image.size != (width, height):
            where, found = f"{self.config.dataset or 'images'} in {self.config.data_dir}", "x".join(map(str, image.size))
            raise DataError(f"crop_padding is for images of the model's size, {width}x{height}, but the {where} have {found}")

    def _transform(self, training: bool, **variation: Any) -> Callable[[Any], Tensor]:
        """From an image as it is read to pixels; `variation` are further arguments of timm's transform, for training images."""
        steps = [self.reading.convert, self.pixels.before(self._whole_transform(training, **variation))]
        composed: Callable[[Any], Tensor] = Compose(steps)
        return composed

    def _whole_transform(self, training: bool, **variation: Any) -> Transform:
        if training:
            return training_transform(self.config, self.preprocessing, **variation)
        return evaluation_transform(self.preprocessing)

    def _inputs(self, batches: Iterator[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        """What a model takes, of pixels."""
        return ((self.pixels.input(pixels), labels) for pixels, labels in batches)


def _drawn(size: int, wanted: int, seed: int) -> Tensor:
    """So many indices below `size`, or all there are, in random order."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:wanted]
