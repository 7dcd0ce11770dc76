"""Check an exported folder as its user would load it: ``python -m objectives.verify FOLDER CHECK.json``, in a fresh process.

CHECK.json holds the data options; outputs.safetensors beside it holds images and the logits that they had before saving.
Prints one JSON object.
"""

import json
import sys
from pathlib import Path
from typing import Any

import timm.data
import torch
from safetensors.torch import load_file

from objectives.count import fvcore_macs, torch_macs
from objectives.data import Data
from objectives.error import evaluate
from objectives.splits import DataConfig
from spaces.compressed import load_compressed


def verify(folder: Path, check: Path) -> dict[str, Any]:
    """Figures of a reloaded model.

    Returns:
        top1 on the test split, macs_fvcore, macs_torch, params, and max_difference of the logits.
    """
    options: dict[str, Any] = json.loads(check.read_text(encoding="utf-8"))
    options["scale"] = tuple(options["scale"])
    model = load_compressed(folder)
    pre = timm.data.resolve_model_data_config(model)
    pre = {key: list(value) if isinstance(value, tuple) else value for key, value in pre.items()}
    size = tuple(pre["input_size"])
    stored = load_file(check.with_name("outputs.safetensors"))
    with torch.inference_mode():
        difference = float((model(stored["images"]) - stored["logits"]).abs().max())
    data = Data(DataConfig(**options), pre)
    return {
        "top1": 1 - evaluate(model, data.evaluation("test")).error,
        "macs_fvcore": fvcore_macs(model, size),
        "macs_torch": torch_macs(model, size),
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "max_difference": difference,
    }


if __name__ == "__main__":
    print(json.dumps(verify(Path(sys.argv[1]), Path(sys.argv[2]))))
