"""The latency of an exported folder's model, beside that of the dense model that it was made from."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from objectives.deploy.config import FILES, Format
from objectives.deploy.formats import open_format, write_formats
from objectives.latency.config import Setting
from objectives.latency.timing import Call, Timing, forward, time_calls
from objectives.runtime.progress import Progress
from objectives.units import format_spread
from spaces.errors import first_line
from spaces.folder.compressed import dense_architecture, load_compressed, save_compressed, stored_type
from spaces.folder.description import read_description
from spaces.models.create import input_size
from spaces.scratch import Scratch
from spaces.vit import describe

Case = tuple[str, dict[str, Call]]  # how both models are run, and the calls that are timed: dense and compressed

_UNASKED: tuple[Format, ...] = ("onnx",)  # timed where they are; torch.export's reader is asked for, as it was made to run code
_RUNTIMES: dict[Format, str] = {"onnx": "onnxruntime", "pt2": "torch.export"}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models timed in turns.

    Attributes:
        setting: how they were run, as text.
        dense, compressed: their timings; None where this way to run them is not to be had.
        reason: why not; empty otherwise.
    """

    setting: str
    dense: Timing | None = None
    compressed: Timing | None = None
    reason: str = ""

    @property
    def ratio(self) -> Timing | None:
        """Time of the compressed model over that of the dense one, round by round."""
        return self.compressed.ratio(self.dense) if self.compressed and self.dense else None


def measure(
    folder: Path,
    device: torch.device,
    batch_sizes: Sequence[int] = (1, 32),
    compiled: bool = True,
    seconds: float = 2.0,
    threads: int | None = None,
    formats: Sequence[Format] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> list[Comparison]:
    """Time a folder's model and its dense architecture, in float32 and mixed precision, eager and compiled.

    Where the folder has the model as ONNX, this is timed as well, on the CPU, beside the dense model in the same format; an
    archive of torch.export where it is asked for.

    Args:
        folder: written by ``run_search.py export``.
        device: where to run them.
        batch_sizes: images in a call; each is a setting.
        compiled: whether to compile them too, which may take minutes.
        seconds: to spend on each model in each setting.
        threads: on the CPU; by default torch's, as they are.
        formats: which of the folder's files, each of which it must then have; by default safetensors, and ONNX where it is
            there.
        progress: called with (what, done, in all).

    Raises:
        CheckpointError: the folder holds no such model, or lacks a format.
        ConfigError: a batch size below 1, or the package of a format is not installed.
    """
    torch.set_num_threads(threads or torch.get_num_threads())
    with Scratch() as scratch:
        progress("loading", 0, 1)
        cases = [*_settings(folder, device, batch_sizes, compiled), *_formats(folder, scratch, batch_sizes, formats)]
        progress("loading", 1, 1)
        progress("latency", 0, len(cases))
        found = []
        for done, (setting, calls) in enumerate(cases, start=1):
            found.append(_compare(setting, calls, seconds))
            progress("latency", done, len(cases))
    return found


def _settings(folder: Path, device: torch.device, batch_sizes: Sequence[int], compiled: bool) -> Iterator[Case]:
    """What to time of both models in PyTorch; models of half types have no mixed precision."""
    models = {"dense": dense_architecture(folder).to(device), "compressed": load_compressed(folder).to(device)}
    dtype = next(models["compressed"].parameters()).dtype
    models["dense"].to(dtype)
    amps = (False, True) if dtype == torch.float32 else (False,)
    for way, size, amp in itertools.product((False, True) if compiled else (False,), batch_sizes, amps):
        setting = Setting(batch_size=size, amp=amp, compiled=way)
        images = torch.randn(size, *input_size(models["dense"]), device=device, dtype=dtype)
        name = setting.text.replace("fp32", str(dtype).removeprefix("torch.")) if not amp else setting.text
        yield name, {key: forward(model, images, setting) for key, model in models.items()}


def _formats(folder: Path, scratch: Path, batch_sizes: Sequence[int], wanted: Sequence[Format] | None) -> Iterator[Case]:
    """What to time of both models in other formats; the dense one is written to `scratch`."""
    description = read_description(folder)
    there = [name for name in _UNASKED if FILES[name] in description["files"]]
    names = there if wanted is None else [name for name in wanted if name != "safetensors"]
    if not names:
        return
    dense = dense_architecture(folder).to(stored_type(description))
    write_formats(scratch, dense, names, {})
    identity = describe(dense, description["space"], description["multiple"]).identity()
    save_compressed(scratch, dense, {**description, "allocation": dict(identity)})
    for name, size in itertools.product(names, batch_sizes):
        images = torch.randn(size, *input_size(dense))
        models = {"compressed": open_format(folder, name), "dense": open_format(scratch, name)}
        yield f"batch {size}, {_RUNTIMES[name]}", {key: partial(model, images) for key, model in models.items()}


def _compare(setting: str, calls: dict[str, Call], seconds: float) -> Comparison:
    """Both models in one setting; a way to run them that torch has not got here is told, not raised."""
    try:
        timings = time_calls(calls, seconds)
    except Exception as error:  # compilers, and types that a device lacks, raise what they like
        return Comparison(setting=setting, reason=first_line(error)[:200])
    return Comparison(setting=setting, dense=timings["dense"], compressed=timings["compressed"])


def rows_of(comparisons: Sequence[Comparison]) -> Iterator[tuple[str, str, str, str]]:
    """For tables: setting, time of dense and of compressed model, and their ratio round by round; medians with quartiles."""
    for entry in comparisons:
        if entry.dense is None or entry.compressed is None or entry.ratio is None:
            yield entry.setting, f"not available: {entry.reason}", "", ""
            continue
        ratio = entry.ratio
        low, high = ratio.quartiles
        shown = f"×{ratio.seconds:.2f} ({low:.2f}–{high:.2f})"
        dense, compressed = (format_spread(timing.seconds, *timing.quartiles) for timing in (entry.dense, entry.compressed))
        yield entry.setting, dense, compressed, shown
