"""The built-in data: 1,797 real 8x8 grey images of handwritten digits, shipped with scikit-learn."""

from typing import Literal

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

CLASSES = 10
_SPLIT_SEED = 0
_TEST_IMAGES, _SEARCH_IMAGES = 360, 297


class Digits(Dataset[tuple[Image.Image, int]]):
    """One split of the digits: 1,140 images to train, 297 to search, 360 to test; stratified, the same in every run.

    Items are (image of mode L, label).
    """

    def __init__(self, split: Literal["train", "search", "test"]) -> None:
        from sklearn.datasets import load_digits  # takes a second, and every process that reads images imports this module
        from sklearn.model_selection import train_test_split

        bunch = load_digits()
        rest, test = train_test_split(
            np.arange(len(bunch.target)), test_size=_TEST_IMAGES, stratify=bunch.target, random_state=_SPLIT_SEED
        )
        train, search = train_test_split(rest, test_size=_SEARCH_IMAGES, stratify=bunch.target[rest], random_state=_SPLIT_SEED)
        indices = {"train": train, "search": search, "test": test}[split]
        self._images = np.round(bunch.images[indices] * (255 / 16)).astype(np.uint8)
        self._labels = bunch.target[indices]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self._images[index]), int(self._labels[index])
