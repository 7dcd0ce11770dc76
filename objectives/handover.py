"""A model as a folder that others load: written, loaded again in a fresh process, measured and compared there."""

import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from objectives.data import Data
from objectives.formats import DTYPES, FILES, Dtype, Format, FormatConfig, write_formats
from objectives.picture_check import CHECKED
from spaces.allocation import Allocation
from spaces.compressed import WEIGHTS, save_compressed
from spaces.description import read_description
from spaces.errors import RunError

# What outputs may differ by after reload: absolutely in fp32; as a share of the largest output where each operator rounds to
# 11 or 8 bits, and another order of the same sums rounds otherwise.
_TOLERANCE: dict[Dtype, float] = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1}

_PROBE_IMAGES = 32  # of the test split, on which outputs are compared


@dataclass(frozen=True, kw_only=True)
class Handover:
    """A model to hand over, beside the dense one that it was made from.

    Attributes:
        model: what is handed over; copied, not changed.
        dense: the dense model.
        description: of `model`, as `save_compressed` wants it.
        identity: the allocation of the dense model in the same space.
        data: images, of which the test split is measured on.
        device: where PyTorch is measured.
        output: formats and dtype.
    """

    model: nn.Module
    dense: nn.Module
    description: dict[str, Any]
    identity: Allocation
    data: Data
    device: torch.device
    output: FormatConfig

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the model's files into an existing folder, and measure what can be loaded from there.

        Returns:
            What `objectives.verify` measured; each entry of formats with its file, bytes, sha256, and the tolerance that its
            outputs kept. dense_bytes: size of the dense model in the same form and in float32.

        Raises:
            CheckpointError: the model cannot be written in one of the formats.
            RunError: a file does not load in a fresh process, or gives other outputs there.
        """
        stored = copy.deepcopy(self.model).cpu().eval().to(DTYPES[self.output.dtype])
        told = {key: self.description[key] for key in ("label_names", "pictures") if key in self.description}
        facts = {**self.description["pretrained_cfg"], **told}
        write_formats(folder, stored, self.output.formats, facts)
        save_compressed(folder, stored, self.description)
        with tempfile.TemporaryDirectory() as scratch:
            dense = Path(scratch)
            save_compressed(dense, self.dense, {**self.description, "allocation": dict(self.identity)})
            measured = _verify_afresh(folder, dense, stored, self.data, self.output.formats, self.device)
            measured["dense_bytes"] = (dense / WEIGHTS).stat().st_size
        files = read_description(folder)["files"]
        for name, entry in measured["formats"].items():
            entry.update(file=FILES[name], **files[FILES[name]], tolerance=self._tolerance(measured["largest_output"]))
            _check(name, entry)
        return measured

    def _tolerance(self, largest: float) -> float:
        share = _TOLERANCE[self.output.dtype]
        return share if self.output.dtype == "fp32" else share * largest


def _check(name: str, entry: dict[str, Any]) -> None:
    if not entry["max_output_difference"] <= entry["tolerance"]:
        raise RunError(
            f"the model reloaded from {entry['file']} is not the one that was saved: its outputs on test images differ by "
            f"up to {entry['max_output_difference']:.3g}, more than {entry['tolerance']:.3g}; nothing was exported"
        )


def _verify_afresh(
    folder: Path, dense: Path, model: nn.Module, data: Data, formats: Sequence[Format], device: torch.device
) -> dict[str, Any]:
    """`objectives.verify` in a process that knows the two folders and the data options only.

    Args:
        folder: of the model, as it will be handed over.
        dense: the dense model, as another such folder.
        model: what was saved in `folder`, on the CPU.
        data: images, for the model.
        formats: what `folder` holds.
        device: where PyTorch runs.

    Raises:
        RunError: the process failed; the message is the last line that it wrote.
    """
    images, _ = next(data.evaluation("test"))
    images = images[:_PROBE_IMAGES].contiguous()
    with tempfile.TemporaryDirectory() as scratch:
        with torch.inference_mode():
            logits = model(images.to(next(model.parameters()).dtype)).float().contiguous()
        save_file({"images": images, "logits": logits}, Path(scratch) / "outputs.safetensors")
        options = asdict(replace(data.config, workers=0))
        where = "cpu" if device.type == "mps" else str(device)  # whose memory nobody counts
        check = {"folder": str(folder), "dense": str(dense), "formats": list(formats), "device": where, "data": options}
        check["checked"] = str(Path(scratch) / CHECKED)
        data.checked.save(Path(scratch) / CHECKED)
        (Path(scratch) / "check.json").write_text(json.dumps(check), encoding="utf-8")
        return _in_fresh_process(Path(scratch) / "check.json")


def _in_fresh_process(check: Path) -> dict[str, Any]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    command = [sys.executable, "-m", "objectives.verify", str(check)]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"the exported folder does not load in a fresh process: {said}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result
