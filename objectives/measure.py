"""The latency of an exported folder's model, beside that of the dense model that it was made from."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from objectives.latency import Call, Setting, Timing, forward, time_calls
from objectives.progress import Progress
from spaces.compressed import dense_architecture, load_compressed
from spaces.errors import first_line
from spaces.models import input_size


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models timed in turns.

    Attributes:
        setting: how they were run.
        dense, compressed: their timings; None where this way to run them is not to be had.
        reason: why not; empty otherwise.
    """

    setting: Setting
    dense: Timing | None = None
    compressed: Timing | None = None
    reason: str = ""

    @property
    def ratio(self) -> Timing | None:
        """Time of the compressed model over that of the dense one, round by round."""
        return self.compressed.ratio(self.dense) if self.compressed and self.dense else None

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it: times in seconds, each as its median and quartiles."""
        timings = {"dense": self.dense, "compressed": self.compressed, "ratio": self.ratio}
        shown = {name: timing and [timing.seconds, *timing.quartiles] for name, timing in timings.items()}
        return {"setting": self.setting.text, **shown, "reason": self.reason}


def measure(
    folder: str | Path,
    device: torch.device,
    batch_sizes: Sequence[int] = (1, 32),
    compiled: bool = True,
    seconds: float = 2.0,
    threads: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> list[Comparison]:
    """Time a folder's model and its dense architecture, in float32 and mixed precision, eager and compiled.

    Args:
        folder: written by ``run_search.py export``.
        device: where to run them.
        batch_sizes: images in a call; each is a setting.
        compiled: whether to compile them too, which may take minutes.
        seconds: to spend on each model in each setting.
        threads: of torch on the CPU; by default as they are.
        progress: called with (what, done, in all).

    Raises:
        CheckpointError: the folder holds no such model.
        ConfigError: a batch size below 1.
    """
    models = {"dense": dense_architecture(folder).to(device), "compressed": load_compressed(folder).to(device)}
    ways = itertools.product((False, True) if compiled else (False,), batch_sizes, (False, True))
    settings = [Setting(batch_size=size, amp=amp, compiled=way) for way, size, amp in ways]
    found = []
    for done, setting in enumerate(settings, start=1):
        found.append(_compare(models, setting, device, seconds, threads))
        progress("latency", done, len(settings))
    return found


def _compare(
    models: dict[str, nn.Module], setting: Setting, device: torch.device, seconds: float, threads: int | None
) -> Comparison:
    """Both models in one setting; a way to run them that torch has not got here is told, not raised."""
    images = torch.randn(setting.batch_size, *input_size(models["dense"]), device=device)
    calls: dict[str, Call] = {name: forward(model, images, setting) for name, model in models.items()}
    try:
        timings = time_calls(calls, seconds, threads)
    except Exception as error:  # compilers, and types that a device lacks, raise what they like
        return Comparison(setting=setting, reason=first_line(error)[:200])
    return Comparison(setting=setting, dense=timings["dense"], compressed=timings["compressed"])


def rows_of(comparisons: Sequence[Comparison]) -> Iterator[tuple[str, str, str, str]]:
    """For tables: setting, milliseconds of dense and of compressed model, and their ratio; medians with quartiles."""
    for entry in comparisons:
        if entry.dense is None or entry.compressed is None or entry.ratio is None:
            yield entry.setting.text, f"not available: {entry.reason}", "", ""
            continue
        ratio = entry.ratio
        low, high = ratio.quartiles
        shown = f"×{ratio.seconds:.2f} ({low:.2f}–{high:.2f})"
        yield entry.setting.text, _milliseconds(entry.dense), _milliseconds(entry.compressed), shown


def _milliseconds(timing: Timing) -> str:
    low, high = timing.quartiles
    return f"{1000 * timing.seconds:.3g} ms ({1000 * low:.3g}–{1000 * high:.3g})"
