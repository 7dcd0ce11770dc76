"""An exported folder as its user would load it, checked and measured beside the dense model: run in a fresh process.

``python -m objectives.deploy.verify CHECK.json`` prints JSON, an object a line: {"told": [what, done, in all]} as it goes on,
and the figures last; `objectives.deploy.folder` starts it.
"""

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import timm.data
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from objectives.cost.peak_memory import peak_memory, weight_bytes
from objectives.cost.tracing import fvcore_macs, torch_macs
from objectives.data.config import DataConfig
from objectives.data.loaders import Data
from objectives.deploy.formats import Forward, open_format, portable
from objectives.deploy.tested import tested
from objectives.error import compare
from objectives.latency.config import Setting
from objectives.latency.timing import Call, forward, time_calls
from objectives.runtime.device import name_of, resolve_device
from objectives.runtime.progress import Progress
from spaces.folder.compressed import load_compressed

BATCH_SIZES = (1, 32)  # for memory and latency
_RELOAD, _FIGURES, _TIMING = "loading the exported files", "counting MACs and memory", "timing the reloaded models"


def verify(check: dict[str, Any], outputs: Path, progress: Progress = lambda what, done, total: None) -> dict[str, Any]:
    """Figures of a folder's model in all its formats, and of the dense one.

    Args:
        check: folder, dense, formats, device, data (options), checked, what is known of the pictures, and seconds of timing for
            each model and batch size.
        outputs: safetensors with images [N, C, H, W] and the logits [N, classes] that they had before saving.
        progress: called with (what, done, in all).

    Returns:
        dense and compressed: macs_fvcore, macs_torch, params, weight_bytes, peak_memory (batch size -> bytes), top1.
        formats: top1 of each, and output_differences: for every image, how far its outputs are from those before saving.
        largest_output: in absolute value, before saving. latency: batch size -> dense and every format -> seconds (median),
        quartiles, and of_dense, the median of the ratios to the dense model's time, round by round. devices, threads and
        preprocessing: what it was measured with.
    """
    device = resolve_device(check["device"])
    progress(_RELOAD, 0, 1)
    calls = {name: open_format(Path(check["folder"]), name) for name in check["formats"]}
    stored = load_file(outputs)
    differences = {name: _differences(call(stored["images"]), stored["logits"]) for name, call in calls.items()}
    models = {"dense": load_compressed(check["dense"]).to(device), "safetensors": load_compressed(check["folder"]).to(device)}
    calls.update({name: portable(model) for name, model in models.items()})
    pre = timm.data.resolve_model_data_config(models["safetensors"])
    pre = {key: list(value) if isinstance(value, tuple) else value for key, value in pre.items()}
    listed: dict[str, Any] = check["data"]
    options: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in listed.items()}
    data = Data(DataConfig(**options), pre, checked=Path(check["checked"]))
    progress(_RELOAD, 1, 1)
    size, top1 = tuple(pre["input_size"]), {name: _top1(name, call, data, progress) for name, call in calls.items()}
    progress(_FIGURES, 0, 1)
    figures = {name: _figures(model, size) for name, model in models.items()}
    progress(_FIGURES, 1, 1)
    return {
        "dense": {**figures["dense"], "top1": top1["dense"]},
        "compressed": {**figures["safetensors"], "top1": top1["safetensors"]},
        "formats": {name: {"top1": top1[name], "output_differences": differences[name]} for name in check["formats"]},
        "largest_output": float(stored["logits"].abs().max()),
        "latency": _latencies(models, calls, size, check["seconds"], progress),
        "devices": {name: name_of(device if name in models else torch.device("cpu")) for name in calls},
        "threads": torch.get_num_threads(),
        "preprocessing": pre,
    }


def _differences(found: Tensor, wanted: Tensor) -> list[float]:
    """The largest of every image."""
    differences: list[float] = (found - wanted).abs().flatten(1).amax(1).tolist()
    return differences


def _latencies(
    models: dict[str, nn.Module],
    calls: dict[str, Forward],
    size: tuple[int, int, int],
    seconds: float,
    progress: Progress,
) -> dict[str, Any]:
    """Batch size -> `_latency`."""
    found = {}
    for done, batch in enumerate(BATCH_SIZES):
        progress(_TIMING, done, len(BATCH_SIZES))
        found[str(batch)] = _latency(models, calls, torch.zeros(batch, *size), seconds)
    progress(_TIMING, len(BATCH_SIZES), len(BATCH_SIZES))
    return found


def _latency(models: dict[str, nn.Module], calls: dict[str, Forward], images: Tensor, seconds: float) -> dict[str, Any]:
    """Of every model, timed in turns: median seconds of a call, quartiles, and the median of ratios to the dense, by round."""
    timed: dict[str, Call] = {name: partial(call, images) for name, call in calls.items()}
    for name, model in models.items():  # with the images where the model is
        there = images.to(next(model.parameters()))
        timed[name] = forward(model, there, Setting(batch_size=len(images)))
    timings = time_calls(timed, seconds)
    return {
        name: {
            "seconds": timing.seconds,
            "quartiles": list(timing.quartiles),
            "of_dense": timing.ratio(timings["dense"]).seconds,
        }
        for name, timing in timings.items()
    }


def _figures(model: nn.Module, size: tuple[int, int, int]) -> dict[str, Any]:
    like = next(model.parameters())
    return {
        "macs_fvcore": fvcore_macs(model, size),
        "macs_torch": torch_macs(model, size),
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "weight_bytes": weight_bytes(model),
        "peak_memory": {str(batch): peak_memory(model, torch.zeros(batch, *size).to(like)) for batch in BATCH_SIZES},
    }


def _top1(name: str, call: Forward, data: Data, progress: Progress) -> float:
    def outputs() -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in tested(data, f"the reloaded files: {name}", progress):
            yield call(images), labels

    return 1 - compare(outputs()).error


if __name__ == "__main__":
    path = Path(sys.argv[1])
    given = json.loads(path.read_text(encoding="utf-8"))
    figures = verify(given, path.with_name("outputs.safetensors"), lambda *told: print(json.dumps({"told": told}), flush=True))
    print(json.dumps(figures))
