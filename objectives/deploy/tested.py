"""The test split, which exports measure on, with a report of how far it is."""

from collections.abc import Iterator

from torch import Tensor

from objectives.data.loaders import Data
from objectives.runtime.progress import Progress, counted


def tested(data: Data, what: str, progress: Progress) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of the test split, images [B, C, H, W] and labels [B]; reports how many have passed, as testing of `what`."""
    images, batch = data.size("test") or 0, data.config.eval_batch_size
    return counted(f"testing {what}", data.evaluation("test"), images, batch, progress)
