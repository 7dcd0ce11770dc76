"""A point of the front as a folder that loads by itself, checked after reload in a fresh process."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from safetensors.torch import load_file, save_file
from torch import nn

from objectives.cost import Cost
from objectives.error import evaluate
from objectives.objective import Evaluator, Progress
from search.environment import environment
from search.run import Run
from search.table import DENSE
from search.targets import format_count, format_kept
from spaces.allocation import Allocation
from spaces.compressed import save_compressed
from spaces.errors import RunError
from spaces.files import replacing, write_json, write_text

_TOLERANCE = 1e-4
_PROBE_IMAGES = 32


def export(
    run: Run,
    target: str | None = None,
    trial: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Path:
    """Write one trial's model to ``export/`` in the run directory.

    Args:
        run: where the trial is.
        target: take the best trial under this budget, e.g. ``flops=50%``; by default the run's own target.
        trial: take this trial instead.
        progress: called with (what, done, in all).

    Returns:
        The folder: config.json, model.safetensors, report.json and README.md. An existing one is replaced.

    Raises:
        TargetError: no finished trial keeps the target.
        RunError: no such trial, or the reloaded model differs from the one that was saved.
    """
    target = target or ",".join(run.config.study.target) or None
    if trial is None and target is None:
        raise RunError("say which point to export: --target flops=50% or --trial N")
    row = run.trial(trial) if trial is not None else run.best(str(target))
    name = f"trial{trial}" if trial is not None else str(target).replace("=", "").replace("%", "").replace(",", "-")
    work = _Export(run, int(row["number"]), run.allocation(row), progress)
    folder = run.directory / "export" / name
    with replacing(folder) as partial:
        partial.mkdir(parents=True)
        work.write(partial)
    return folder


class _Export:
    """The parts of one export."""

    def __init__(self, run: Run, number: int, allocation: Allocation, progress: Progress) -> None:
        self.run, self.number, self.allocation = run, number, allocation
        self.evaluator = Evaluator(run.config.objective(run.directory), progress)

    def write(self, folder: Path) -> None:
        """Write everything that the folder holds."""
        model = self._finetuned(self.number, self.allocation)
        config = self.run.config
        save_compressed(folder, model, {
            "architecture": config.model.model,
            "model_args": dict(config.model.model_kwargs),
            "num_classes": getattr(model, "num_classes", None),
            "space": config.study.space,
            "multiple": config.study.multiple,
            "allocation": dict(self.allocation),
            "pretrained_cfg": self.evaluator.preprocessing,
            "operators": self.run.space.operators(self.allocation),
        })  # fmt: skip
        report = self._report(model, folder)
        write_json(folder / "report.json", report)
        write_text(folder / "README.md", _card(report, config.model.model, config.study.space))

    def _report(self, model: nn.Module, folder: Path) -> dict[str, Any]:
        dense = self.evaluator.factors.dense.to(self.evaluator.device)
        top1 = {
            "dense": self._top1(dense),
            "dense_finetuned": self._top1(self._reference()),
            "as_built": self._top1(self.evaluator.factors.build(self.allocation)),
            "finetuned": self._top1(model),
        }
        dense.to("cpu")
        reloaded = _in_fresh_process(folder, model.cpu(), self.evaluator)
        errors = {name: 1 - value for name, value in top1.items()}
        if reloaded["max_difference"] > _TOLERANCE or reloaded["macs_fvcore"] != self._kept("macs")["compressed"]:
            raise RunError(f"the reloaded model is not the one that was saved: {reloaded}")
        return {
            "trial": self.number,
            "target": list(self.run.config.study.target),
            "macs": {**self._kept("macs"), "fvcore_after_reload": reloaded["macs_fvcore"],
                     "torch_after_reload": reloaded["macs_torch"]},
            "params": {**self._kept("params"), "after_reload": reloaded["params"]},
            "test_top1": {**top1, "after_reload": reloaded["top1"]},
            "test_images": self.evaluator.data.size("test"),
            "relative_error": {
                "as_built": _ratio(errors["as_built"], errors["dense_finetuned"]),
                "finetuned": _ratio(errors["finetuned"], errors["dense_finetuned"]),
                "against": "the dense model given the same fine-tune",
            },
            "max_output_difference_after_reload": reloaded["max_difference"],
            "bytes": (folder / "model.safetensors").stat().st_size,
            "finetune": {**asdict(self.run.config.finetune), "seed": self.run.config.study.seed},
            "environment": environment(self.evaluator.device),
        }  # fmt: skip

    def _kept(self, cost: Cost) -> dict[str, float]:
        dense, compressed = self.evaluator.costs.dense[cost], self.evaluator.costs.count(self.allocation, cost)
        return {"dense": dense, "compressed": compressed, "kept": compressed / dense}

    def _top1(self, model: nn.Module) -> float:
        return 1 - evaluate(model.to(self.evaluator.device), self.evaluator.data.evaluation("test")).error

    def _reference(self) -> nn.Module:
        """The dense model given the same fine-tune as the candidates."""
        rows = self.run.trials[(self.run.trials["label"] == DENSE) & (self.run.trials["state"] == "COMPLETE")]
        number = int(rows.iloc[0]["number"]) if len(rows) else -1
        return self._finetuned(number, self.run.space.identity())

    def _finetuned(self, number: int, allocation: Allocation) -> nn.Module:
        """The model of a trial: from the weights that the search kept, else fine-tuned again with the same seed."""
        weights = self.run.directory / "front" / f"{number:04d}.safetensors"
        if not weights.exists():
            self.evaluator.evaluate(allocation, self.run.config.study.seed, weights=weights)
        model = self.evaluator.factors.build(allocation)
        model.load_state_dict(load_file(weights), strict=True)
        return model


def _in_fresh_process(folder: Path, model: nn.Module, evaluator: Evaluator) -> dict[str, Any]:
    """`objectives.verify` on the folder, in a process that knows the folder and the data options only."""
    images, _ = next(evaluator.data.evaluation("test"))
    images = images[:_PROBE_IMAGES]
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        check = Path(scratch) / "check.json"
        write_json(check, asdict(replace(evaluator.objective.data, workers=0)))
        save_file({"images": images.contiguous(), "logits": model(images).contiguous()}, Path(scratch) / "outputs.safetensors")
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
        command = [sys.executable, "-m", "objectives.verify", str(folder), str(check)]
        done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    if done.returncode:
        raise RunError(
            f"the exported folder does not load in a fresh process: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        )
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _card(report: dict[str, Any], model: str, space: str) -> str:
    templates = Environment(loader=PackageLoader("search"), undefined=StrictUndefined, trim_blocks=True, autoescape=False)
    templates.filters.update(count=format_count, kept=format_kept)
    return templates.get_template("card.md.j2").render(report=report, model=model, space=space)


def _ratio(error: float, reference: float) -> float | None:
    return error / reference if reference > 0 else None
