"""Seeds for every random number generator that training and augmentation draw from."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


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


def drawn_apart(batches: Iterator[Any], seed: int) -> Iterator[Any]:
    """`batches`, made from random numbers of their own."""
    stream, end = _RandomStream(seed), object()
    while True:
        with stream:
            batch = next(batches, end)
        if batch is end:
            return
        yield batch
