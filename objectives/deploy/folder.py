"""A model as a folder that others load: written, loaded again in a fresh process, measured and compared there."""

import copy
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from objectives.data.loaders import Data
from objectives.deploy.config import FILES, Dtype, FormatConfig
from objectives.deploy.formats import DTYPES, write_formats
from objectives.pictures.check import CHECKED
from objectives.runtime.progress import Progress
from spaces.allocation import Allocation
from spaces.errors import RunError
from spaces.folder.compressed import save_compressed
from spaces.folder.description import WEIGHTS, read_description
from spaces.scratch import Scratch

# What outputs may differ by after reload: absolutely in fp32; as a share of the largest output where each operator rounds to
# 11 or 8 bits, and another order of the same sums rounds otherwise.
_TOLERANCE: dict[Dtype, float] = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1}

# Tokens that are equally similar but for rounding may be merged otherwise by another runtime, and what comes of that image is
# then what another merging gives. So many images must agree all the same, and no other may be further off than this share of
# the largest output. A wrong file differs on every image.
_AGREEING, _APART = 0.75, 0.25

TIMED_SECONDS = 0.5  # for each model and batch size

_PROBE_IMAGES = 32  # of the test split, on which outputs are compared
_WRITING, _TOLD = "writing the files", '{"told"'


@dataclass(frozen=True, kw_only=True)
class Handover:
    """A model to hand over, beside the dense one that it was made from.

    Attributes:
        model: what is handed over; copied, not changed.
        dense: the dense model.
        description: of `model`, as `save_compressed` wants it.
        identity: the allocation of the dense model in the same space.
        merges: whether the model merges tokens.
        data: images, of which the test split is measured on.
        device: where PyTorch is measured.
        output: formats and dtype.
        progress: called with (what, done, in all).
    """

    model: nn.Module
    dense: nn.Module
    description: dict[str, Any]
    identity: Allocation
    data: Data
    device: torch.device
    output: FormatConfig
    merges: bool = False
    progress: Progress = lambda what, done, total: None

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the model's files into an existing folder, and measure what can be loaded from there.

        Returns:
            What `objectives.deploy.verify` measured; each entry of formats with its file, bytes, sha256, the tolerance of its
            outputs, the share of images that kept it (agreeing: all, unless tokens are merged), and the largest difference of
            outputs. dense_bytes: size of the dense model in the same form and in float32.

        Raises:
            CheckpointError: the model cannot be written in one of the formats.
            RunError: a file does not load in a fresh process, or gives other outputs there.
        """
        stored = copy.deepcopy(self.model).cpu().eval().to(DTYPES[self.output.dtype])
        told = {key: self.description[key] for key in ("label_names", "pictures")}
        facts = {**self.description["pretrained_cfg"], **told}
        self.progress(_WRITING, 0, 1)
        write_formats(folder, stored, self.output.formats, facts)
        save_compressed(folder, stored, self.description)
        self.progress(_WRITING, 1, 1)
        with Scratch() as dense:
            save_compressed(dense, self.dense, {**self.description, "allocation": dict(self.identity)})
            measured = self._verified(folder, dense, stored)
            measured["dense_bytes"] = (dense / WEIGHTS).stat().st_size
        files = read_description(folder)["files"]
        for name, entry in measured["formats"].items():
            found = judged(entry.pop("output_differences"), self.output.dtype, measured["largest_output"])
            entry.update(file=FILES[name], **files[FILES[name]], **found)
            check_outputs(entry, measured["largest_output"], self.merges)
        return measured

    def _verified(self, folder: Path, dense: Path, model: nn.Module) -> dict[str, Any]:
        """`objectives.deploy.verify` in a process that knows the two folders and the data options only.

        Args:
            folder: of the model, as it will be handed over.
            dense: the dense model, as another such folder.
            model: what was saved in `folder`, on the CPU.

        Raises:
            RunError: the process failed; the message is the last line that it wrote.
        """
        images, _ = next(self.data.evaluation("test"))
        images = images[:_PROBE_IMAGES].contiguous()
        with Scratch() as scratch:
            with torch.inference_mode():
                logits = model(images.to(next(model.parameters()).dtype)).float().contiguous()
            save_file({"images": images, "logits": logits}, scratch / "outputs.safetensors")
            where = "cpu" if self.device.type == "mps" else str(self.device)  # whose memory nobody counts
            check = {
                "folder": str(folder), "dense": str(dense), "formats": list(self.output.formats), "device": where,
                "data": asdict(replace(self.data.config, workers=0)), "checked": str(scratch / CHECKED),
                "seconds": TIMED_SECONDS,
            }  # fmt: skip
            self.data.checked.save(scratch / CHECKED)
            (scratch / "check.json").write_text(json.dumps(check), encoding="utf-8")
            return _in_fresh_process(scratch / "check.json", self.progress)


def judged(differences: Sequence[float], dtype: Dtype, largest: float) -> dict[str, float]:
    """What images say of a file.

    Args:
        differences: for every image, how far its outputs are from those before saving.
        dtype: of the weights.
        largest: of the outputs before saving, in absolute value.
    """
    tolerance = _TOLERANCE[dtype] * (1.0 if dtype == "fp32" else largest)
    furthest = max(math.inf if math.isnan(difference) else difference for difference in differences)
    agreeing = sum(difference <= tolerance for difference in differences) / len(differences)
    return {"max_output_difference": furthest, "tolerance": tolerance, "agreeing": agreeing}


def check_outputs(entry: Mapping[str, Any], largest: float, merges: bool) -> None:
    """Raise unless a file holds the model that was saved.

    Args:
        entry: its name, and what `judged` says of it.
        largest: of the outputs before saving, in absolute value.
        merges: whether the model merges tokens.

    Raises:
        RunError: it gives other outputs.
    """
    furthest, agreeing = entry["max_output_difference"], entry["agreeing"]
    if agreeing == 1 or (merges and agreeing >= _AGREEING and furthest <= _APART * largest):
        return
    raise RunError(
        f"the model reloaded from {entry['file']} is not the one that was saved: its outputs on test images differ by up to "
        f"{furthest:.3g}, and by more than {entry['tolerance']:.3g} on {1 - agreeing:.0%} of them; nothing was exported"
    )


def _in_fresh_process(check: Path, progress: Progress) -> dict[str, Any]:
    """What the process printed last; how far it is goes to `progress` before."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    command, last = [sys.executable, "-m", "objectives.deploy.verify", str(check)], ""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as stderr:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, encoding="utf-8", env=environ
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    last = line
                    if line.startswith(_TOLD):
                        progress(*json.loads(line)["told"])
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            stderr.seek(0)
            said = (stderr.read().strip().splitlines() or ["no message"])[-1]
            raise RunError(f"the exported folder does not load in a fresh process: {said}")
    result: dict[str, Any] = json.loads(last)
    return result
