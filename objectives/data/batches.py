"""Batches of pictures: a part of a data set in a loader of PyTorch's, whose errors reach the caller as they are."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from objectives.pictures.reading import Reading
from objectives.pictures.sources import Pictures
from objectives.pictures.transform import prepared
from objectives.runtime.distributed import Group
from spaces.errors import DataError


class View(Dataset[tuple[Tensor, int] | DataError]):
    """A part of a data set, transformed. What cannot be read comes as the error: a loader would wrap what is raised."""

    def __init__(self, pictures: Pictures, indices: Tensor, reading: Reading, transform: Callable[[Any], Tensor]) -> None:
        self.pictures, self.indices, self.reading, self.transform = pictures, indices, reading, transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | DataError:
        place = int(self.indices[index])
        try:
            image, label = self.pictures.read(place, self.reading)
            return prepared(self.transform, image, self.pictures.name(place)), label
        except DataError as error:
            return error


class Shuffled(Sampler[int]):
    """`count` indices: a new permutation of the data set every epoch, from one seed; every process takes its share of them."""

    def __init__(self, size: int, count: int, seed: int, group: Group) -> None:
        self.size, self.count, self.seed, self.group = size, count, seed, group

    def __len__(self) -> int:
        return self.count // self.group.size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        epochs = -(-self.count // self.size)
        indices = (int(index) for _ in range(epochs) for index in torch.randperm(self.size, generator=generator))
        return islice(indices, self.group.rank, self.count, self.group.size)


def loaded(view: View, **options: Any) -> Iterator[Any]:
    """Batches of a view.

    Args:
        view: which images.
        options: of PyTorch's loader.

    Raises:
        DataError: a picture cannot be read any more, or a label is no number.
    """
    return _read(iter(DataLoader(view, collate_fn=_collated, **options)))


def _collated(samples: list[tuple[Tensor, int] | DataError]) -> Any:
    """A batch, or the first error."""
    return next((sample for sample in samples if isinstance(sample, DataError)), None) or default_collate(samples)


def _read(batches: Iterator[Any]) -> Iterator[Any]:
    """`batches`, until one is an error."""
    while (batch := next(batches, None)) is not None:
        if isinstance(batch, DataError):
            del batches  # its processes end now; freed together with the frames of an error, it would wait for them
            raise batch
        yield batch
