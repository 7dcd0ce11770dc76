"""Running out of memory for real: another tensor takes the card's, until a batch does not fit in what is left."""

import gc
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from gpu.models import evaluator_of, pictures
from gpu.rows import Figures
from gpu.setting import Setting
from objectives.evaluator import Evaluator
from objectives.score import Score
from spaces.allocation import Allocation

_STEPS, _BATCH = 4, 128
_LEFT = (0.9, 0.8, 0.7, 0.6)  # of what whole batches take


def measure(unit: str, setting: Setting, known: Mapping[str, Figures]) -> Iterator[tuple[str, dict[str, Any]]]:
    """One candidate with all of the memory, and with so little that its batches are split. Without a GPU that is played.

    Raises:
        RuntimeError: no amount of memory made it split its batches.
    """
    options = {} if setting.tiny else {"steps": _STEPS, "batch_size": _BATCH, "eval_batch_size": _BATCH}
    evaluator = evaluator_of(
        pictures(setting, amp="off", search_size=32 if setting.tiny else 256, **options), setting, "pictures"
    )
    dense = evaluator.dense
    allocation = dense.space.decode(0.5, lambda allocation: dense.costs.load(allocation, {"macs": dense.costs.dense["macs"]}))
    evaluator.evaluate(allocation, seed=0)  # what is loaded at a first use is not counted
    held = _held(setting)
    whole = evaluator.evaluate(allocation, seed=0)
    taken = _peak(setting) - held
    yield "all of the memory", _figures(whole, taken)
    for left in _LEFT:
        with _little(int(left * taken), setting, evaluator):
            score = _tried(evaluator, allocation)
        if score is not None and score.parts > 1:
            yield f"{left:.0%} of that" if setting.on_gpu else "played", _figures(score, int(left * taken))
            return
    raise RuntimeError(f"batches were not split with {', '.join(f'{left:.0%}' for left in _LEFT)} of what whole ones take")


def _figures(score: Score, taken: int) -> dict[str, Any]:
    return {"GiB": taken / 2**30, "parts": score.parts, "error": score.error, "KL": score.kl, "KL as built": score.kl_before}


def _tried(evaluator: Evaluator, allocation: Allocation) -> Score | None:
    """The score; None where there was too little memory for halves too."""
    try:
        return evaluator.evaluate(allocation, seed=0)
    except torch.OutOfMemoryError as error:
        print(f"too little for halves: {error}", flush=True)
        return None


def _little(bytes_left: int, setting: Setting, evaluator: Evaluator) -> AbstractContextManager[None]:
    return _pressed(bytes_left) if setting.on_gpu else _played(evaluator)


@contextmanager
def _pressed(bytes_left: int) -> Iterator[None]:
    """A card with so much free memory."""
    gc.collect()
    torch.cuda.empty_cache()
    ballast = torch.empty(max(0, torch.cuda.mem_get_info()[0] - bytes_left), dtype=torch.uint8, device="cuda")
    try:
        yield
    finally:
        del ballast
        torch.cuda.empty_cache()


@contextmanager
def _played(evaluator: Evaluator) -> Iterator[None]:
    """The first candidate that is built finds no memory."""
    build, failed = evaluator.build, list[bool]()

    def first_fails(allocation: Allocation) -> Any:
        if not failed:
            failed.append(True)
            raise torch.OutOfMemoryError
        return build(allocation)

    with patch.object(evaluator, "build", first_fails):
        yield


def _held(setting: Setting) -> int:
    """Bytes of the tensors on the card; from here on the peak counts."""
    if not setting.on_gpu:
        return 0
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return int(torch.cuda.memory_allocated())


def _peak(setting: Setting) -> int:
    return int(torch.cuda.max_memory_allocated()) if setting.on_gpu else 0
