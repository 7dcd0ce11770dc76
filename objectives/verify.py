"""An exported folder as its user would load it, checked and measured beside the dense model: run in a fresh process.

``python -m objectives.verify CHECK.json`` prints one JSON object; `objectives.handover` starts it.
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

from objectives.count import fvcore_macs, torch_macs
from objectives.data import Data
from objectives.device import name_of, resolve_device
from objectives.error import compare
from objectives.footprint import peak_memory, weight_bytes
from objectives.formats import Forward, open_format, portable
from objectives.latency import Call, Setting, forward, time_calls
from objectives.splits import DataConfig
from spaces.compressed import load_compressed

BATCH_SIZES = (1, 32)  # for memory and latency
_SECONDS = 0.5  # of timing, for each model and batch size


def verify(check: dict[str, Any], outputs: Path) -> dict[str, Any]:
    """Figures of a folder's model in all its formats, and of the dense one.

    Args:
        check: folder, dense, formats, device, data (options), and checked, what is known of the pictures.
        outputs: safetensors with images [N, C, H, W] and the logits [N, classes] that they had before saving.

    Returns:
        dense and compressed: macs_fvcore, macs_torch, params, weight_bytes, peak_memory (batch size -> bytes), top1.
        formats: top1 and max_output_difference of each. largest_output: in absolute value, before saving. latency: batch
        size -> dense and every format -> seconds (median), quartiles, and of_dense, the median of the ratios to the dense
        model's time, round by round. devices, threads and preprocessing: what it was measured with.
    """
    device = resolve_device(check["device"])
    calls = {name: open_format(Path(check["folder"]), name) for name in check["formats"]}
    stored = load_file(outputs)
    differences = {name: float((call(stored["images"]) - stored["logits"]).abs().max()) for name, call in calls.items()}
    models = {"dense": load_compressed(check["dense"]).to(device), "safetensors": load_compressed(check["folder"]).to(device)}
    calls.update({name: portable(model) for name, model in models.items()})
    pre = timm.data.resolve_model_data_config(models["safetensors"])
    pre = {key: list(value) if isinstance(value, tuple) else value for key, value in pre.items()}
    listed: dict[str, Any] = check["data"]
    options: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in listed.items()}
    data = Data(DataConfig(**options), pre, checked=Path(check["checked"]))
    size, top1 = tuple(pre["input_size"]), {name: _top1(call, data) for name, call in calls.items()}
    return {
        "dense": {**_figures(models["dense"], size), "top1": top1["dense"]},
        "compressed": {**_figures(models["safetensors"], size), "top1": top1["safetensors"]},
        "formats": {name: {"top1": top1[name], "max_output_difference": differences[name]} for name in check["formats"]},
        "largest_output": float(stored["logits"].abs().max()),
        "latency": {str(batch): _latency(models, calls, torch.zeros(batch, *size)) for batch in BATCH_SIZES},
        "devices": {name: name_of(device if name in models else torch.device("cpu")) for name in calls},
        "threads": torch.get_num_threads(),
        "preprocessing": pre,
    }


def _latency(models: dict[str, nn.Module], calls: dict[str, Forward], images: Tensor) -> dict[str, Any]:
    """Of every model, timed in turns: median seconds of a call, quartiles, and the median of ratios to the dense, by round."""
    timed: dict[str, Call] = {name: partial(call, images) for name, call in calls.items()}
    for name, model in models.items():  # with the images where the model is
        there = images.to(next(model.parameters()))
        timed[name] = forward(model, there, Setting(batch_size=len(images)))
    timings = time_calls(timed, _SECONDS)
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


def _top1(call: Forward, data: Data) -> float:
    def outputs() -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in data.evaluation("test"):
            yield call(images), labels

    return 1 - compare(outputs()).error


if __name__ == "__main__":
    path = Path(sys.argv[1])
    print(json.dumps(verify(json.loads(path.read_text(encoding="utf-8")), path.with_name("outputs.safetensors"))))
