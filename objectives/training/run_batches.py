"""What all trials of a run read alike: its training batches with their soft labels, and the images of the search split.

A run's trials share one seed, so batches and soft labels are made once and kept in files, as far as the disk may be used; what
is not kept is made anew every time it is read. Both give the same, to the bit where the soft labels are float32's.
"""

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from objectives.data.loaders import Data
from objectives.data.stored import Stored, open_stored, size_of, store
from objectives.runtime.distributed import ALONE, Group
from objectives.runtime.out_of_memory import within_memory
from objectives.runtime.progress import Progress, counted
from objectives.training.batch import Batch, soft_labels, taught
from objectives.training.config import FinetuneConfig
from spaces.locks import lock_file

CACHE = "cache"  # folder in the run directory
_GIGABYTE = 1e9
_DISK, _MEMORY = 0.25, 0.5  # shares that are used by default: of the free disk, and of the memory that would hold the pages
_RESIDENT = 0.1  # of a GPU's free memory: smaller arrays are kept there
_LABEL_BYTES = 8
_TABLE, _ENTRY = 1000, 16  # bytes of a table of contents, and of each batch in it, at most


class RunBatches:
    """Training batches and search images of one run, for one device.

    Args:
        data: the images.
        config: of the fine-tune.
        teacher: gives the dense model, on the device.
        outputs: of the dense model, for an image.
        device: that trains and measures.
        folder: where they are kept, for all processes of the run.
        limit: GB that may be kept there; None for a share of what is free.
        mark: of all that they follow from, besides the seed and the group.
    """

    def __init__(
        self,
        data: Data,
        config: FinetuneConfig,
        teacher: Callable[[], nn.Module],
        outputs: int,
        device: torch.device,
        folder: Path,
        limit: float | None,
        mark: str,
    ) -> None:
        self._data, self._config, self._teacher, self._outputs, self._device = data, config, teacher, outputs, device
        self._folder, self._limit, self._mark = folder, limit, mark
        self._search: Stored | None = None
        self._training: dict[tuple[int, Group], Stored] = {}

    def training(self, steps: int, seed: int, group: Group = ALONE, parts: int = 1) -> Iterator[Batch]:
        """Batches of a fine-tune, on the device.

        Args:
            steps: how many.
            seed, group: as of `Data.training`.
            parts: how many each passes through the dense model in, where its soft labels are not kept.
        """
        kept = self._training.get((seed, group))
        if kept is None or len(kept.batches) < steps:
            pixels = self._data.training_pixels(steps, seed, group=group)
            return taught(self._moved(pixels), self._teacher(), self._config, parts)
        return self._kept_training(kept, steps, seed, group)

    def search(self, most: int | None = None, group: Group = ALONE) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the search split: images [B, C, H, W] on the device, and labels [B] on the CPU.

        Args:
            most, group: as of `Data.evaluation`.
        """
        for pixels, labels in self._search_pixels(most, group):
            yield self._input(pixels), labels

    def search_labels(self) -> list[Tensor]:
        """Labels of every batch of the search split, [B] each."""
        return [labels for _, labels in self._search_pixels()]

    def needed(self, group: Group = ALONE) -> int:
        """Bytes that all of it takes for a group: the search images once, the batches of every process."""
        processes = (Group(rank=rank, size=group.size) for rank in range(group.size))
        return self._search_bytes + sum(self._training_bytes(each, pixels=True) for each in processes)

    def keep_search(self, progress: Progress) -> None:
        """Read the search split once and for all; nothing is done where there is no room, or where it is streamed."""
        images, batch = self._data.size("search"), self._data.config.eval_batch_size
        if images is None:
            return

        def made() -> Iterator[Mapping[str, Tensor]]:
            batches = counted("search images", self._data.evaluation_pixels("search", keep=False), images, batch, progress)
            return ({"pixels": pixels, "labels": labels} for pixels, labels in batches)

        self._search = self._keep("search", self._mark, -(-images // batch), self._search_bytes, made)

    def keep_training(self, seed: int, group: Group, progress: Progress) -> None:
        """Make the training batches once and for all; the soft labels alone where there is no room for their pixels.

        Args:
            seed: of the fine-tunes.
            group: those of this process of it.
            progress: called with (what, batches done, in all).
        """
        steps = self._config.steps
        if not steps or (seed, group) in self._training:
            return
        self._training = {}  # its files take up the disk as long as they are open
        kept = self._keep_training(seed, group, True, progress)
        if kept is None and self._config.distillation:
            kept = self._keep_training(seed, group, False, progress)
        if kept is not None:
            self._training[seed, group] = kept

    def _keep_training(self, seed: int, group: Group, pixels: bool, progress: Progress) -> Stored | None:
        """Training batches, with their pixels or without."""
        name = "training" if group == ALONE else f"training-{group.rank}-of-{group.size}"
        mark = repr((self._mark, self._config.amp, bool(self._config.distillation), self._device.type, seed, group, pixels))
        steps, size = self._config.steps, self._training_bytes(group, pixels)

        def attempt(parts: int) -> Stored | None:
            return self._keep(name, mark, steps, size, partial(self._lessons, seed, group, pixels, progress, parts))

        return within_memory(attempt)

    def _lessons(self, seed: int, group: Group, pixels: bool, progress: Progress, parts: int) -> Iterator[Mapping[str, Tensor]]:
        """What is kept of every training batch."""
        teacher, steps, share = self._teacher(), self._config.steps, group.divide(self._data.config.batch_size)
        batches = self._data.training_pixels(steps, seed, group=group)
        for values, labels in counted("batches", batches, steps * share, share, progress):
            soft = soft_labels(teacher, self._input(values), self._config, parts)
            yield {
                "labels": labels, **({"pixels": values} if pixels else {}), **({} if soft is None else {"soft": soft})
            }  # fmt: skip

    def _kept_training(self, kept: Stored, steps: int, seed: int, group: Group) -> Iterator[Batch]:
        batches: Iterator[Mapping[str, Tensor]] = islice(kept.rows(), steps)
        if "pixels" not in kept.arrays:
            pixels = self._data.training_pixels(steps, seed, group=group)
            batches = ({**rows, "pixels": values} for rows, (values, _) in zip(batches, pixels, strict=True))
        for rows in batches:
            soft = rows["soft"].to(self._device) if "soft" in rows else None
            yield Batch(images=self._input(rows["pixels"]), labels=rows["labels"].to(self._device), soft=soft)

    def _search_pixels(self, most: int | None = None, group: Group = ALONE) -> Iterator[tuple[Tensor, Tensor]]:
        if self._search is None:
            return self._data.evaluation_pixels("search", most, group)
        pixels, labels = self._search.arrays["pixels"], self._search.arrays["labels"]
        return ((pixels[places], labels[places]) for places in self._data.places(len(labels), most, group))

    def _moved(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        return ((self._input(pixels), labels) for pixels, labels in batches)

    def _input(self, pixels: Tensor) -> Tensor:
        return self._data.pixels.input(pixels.to(self._device, non_blocking=True))

    @property
    def _search_bytes(self) -> int:
        return (self._data.size("search") or 0) * (self._data.image_bytes(training=False) + _LABEL_BYTES)

    def _training_bytes(self, group: Group, pixels: bool) -> int:
        images = self._config.steps * group.divide(self._data.config.batch_size)
        soft = 4 * self._outputs if self._config.distillation else 0
        return images * (soft + _LABEL_BYTES + (self._data.image_bytes(training=True) if pixels else 0))

    def _keep(
        self, name: str, mark: str, batches: int, size: int, made: Callable[[], Iterator[Mapping[str, Tensor]]]
    ) -> Stored | None:
        """Arrays from the run's folder, made if they are not there and there is room; None without.

        Args:
            name: what they are; the folder has one of each at a time.
            mark: of all that they follow from.
            batches: least number of them.
            size: bytes that they take, without the table of contents.
            made: makes them.
        """
        folder = self._folder / f"{name}.{hashlib.sha256(mark.encode()).hexdigest()[:16]}"
        if self._limit == 0:
            return None
        with self._alone():
            found = open_stored(folder)
            if found is None or len(found.batches) < batches:
                found = None
                if self._has_room(name, size + _TABLE + _ENTRY * batches):
                    with suppress(OSError):  # the disk is full after all: every trial makes its own
                        store(folder, made())
                    found = open_stored(folder)
        return None if found is None else self._placed(found)

    def _has_room(self, name: str, size: int) -> bool:
        """Whether so many bytes more may be kept in place of what was kept of this name, which is then removed."""
        old = list(self._folder.glob(f"{name}.*"))
        with suppress(OSError):
            freed, free = sum(map(size_of, old)), shutil.disk_usage(self._folder).free
            used = size_of(self._folder) - freed
            limit = _share(free + freed + used) if self._limit is None else self._limit * _GIGABYTE
            if used + size <= limit and size < free + freed:
                for folder in old:
                    shutil.rmtree(folder, ignore_errors=True)
                return True
        return False

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process of the run makes the same; on a disk without locks it may."""
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as opened:
            with suppress(OSError):
                lock_file(opened.enter_context((self._folder / ".lock").open("w")), wait=True)
            yield

    def _placed(self, stored: Stored) -> Stored:
        """Pixels on the GPU, where they are few enough."""
        pixels = stored.arrays.get("pixels")
        if self._device.type != "cuda" or pixels is None:
            return stored
        free, _ = torch.cuda.mem_get_info(self._device)
        if pixels.nbytes > _RESIDENT * free:
            return stored
        return replace(stored, arrays={**stored.arrays, "pixels": pixels.to(self._device)})


def remove_batches(directory: Path) -> None:
    """Remove what is kept in a run directory: all of it can be made again."""
    shutil.rmtree(directory / CACHE, ignore_errors=True)


def _share(free: int) -> float:
    """Bytes that are used by default, of so many free ones."""
    names = getattr(os, "sysconf_names", {})
    known = "SC_PAGE_SIZE" in names and "SC_PHYS_PAGES" in names
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else math.inf
    return min(_DISK * free, _MEMORY * memory)
