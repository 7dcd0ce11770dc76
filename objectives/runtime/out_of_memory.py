"""Running out of memory: told from other errors, and answered with batches in two parts."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")
# Errors of torch that have no type of their own: its allocators for CPUs, Apple's GPUs and CUDA's driver; cuBLAS.
_MESSAGES = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this error says that there was too little memory, on whichever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


def within_memory(attempt: Callable[[int], T]) -> T:
    """`attempt(1)`; where that ran out of memory, `attempt(2)`, after what it held was freed.

    Args:
        attempt: given how many parts to split every batch in; begins anew when it is called again.
    """
    try:
        return attempt(1)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    gc.collect()  # here the error is gone, and with it the frames that held the model
    torch.cuda.empty_cache()
    return attempt(2)
