"""Batches of a streamed split, which has no indices: passes over it, and parts of them."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from objectives.data.config import DataConfig
from objectives.runtime.distributed import Group
from spaces.errors import DataError, printable

Transform = Callable[[Any], Tensor]


def one_pass(base: Dataset[Any], config: DataConfig, transform: Transform, batch: int, seed: int) -> Iterator[Any]:
    """One pass over a streamed split, in a process of its own, so that every pass begins anew.

    Args:
        base: as timm opened it.
        config: which images.
        transform: of an image.
        batch: images of a batch; the last one may have less.
        seed: of the transform.

    Raises:
        DataError: it cannot be read.
    """
    cast(Any, base).transform = transform
    generator = torch.Generator().manual_seed(seed)
    batches = iter(DataLoader(base, batch_size=batch, num_workers=config.workers or 1, generator=generator))
    try:
        yield from batches
    except Exception as error:  # every reader raises its own kind, and the loader adds where
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{config.dataset} in {config.data_dir} cannot be read: {printable(said[-1])}") from error


def endless_passes(
    base: Dataset[Any], config: DataConfig, transform: Transform, batch: int, seed: int, begin: int = 0
) -> Iterator[Any]:
    """Passes over the training split, each in another order, from the one of number `begin` on; arguments as of `one_pass`."""
    for epoch in count(begin):
        cast(Any, base).set_epoch(epoch)
        batches = one_pass(base, config, transform, batch, seed + epoch)
        if (found := next(batches, None)) is None:
            raise DataError(f"no images in {config.data_dir} (split {config.train_split!r})")
        yield found
        yield from batches


def shares(batches: Iterator[Any], group: Group) -> Iterator[tuple[Tensor, Tensor]]:
    """A process's share of every batch, as many images as the others get of it."""
    for images, labels in batches:
        shared = len(labels) // group.size * group.size
        if shared:
            yield images[group.rank : shared : group.size], labels[group.rank : shared : group.size]


def first(batches: Iterator[Any], wanted: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The first `wanted` images, and their labels."""
    for images, labels in batches:
        yield images[:wanted], labels[:wanted]
        wanted -= len(images)
        if wanted <= 0:
            return
