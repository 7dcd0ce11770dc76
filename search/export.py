"""A point of the front as a folder that loads by itself, checked after reload in a fresh process."""

import copy
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from safetensors.torch import load_file, save_file
from torch import nn

from objectives.cost import Cost, cost_model
from objectives.device import name_of
from objectives.error import evaluate
from objectives.evaluator import Evaluator
from objectives.progress import Progress
from objectives.recipes import RECIPES, evaluate_recipe, make_cut
from objectives.training import Trained, TrainingConfig
from search.environment import environment
from search.long_finetune import long_finetune
from search.machines import MachineConfig
from search.run import Run
from search.table import DENSE
from search.targets import format_count, format_kept, recipe_budgets
from spaces.compressed import save_compressed
from spaces.errors import RunError
from spaces.files import replacing, write_json, write_text
from spaces.vit import describe, resize

_TOLERANCE = 1e-4
_PROBE_IMAGES = 32
SHORT, HERE = TrainingConfig(), MachineConfig()  # no long fine-tune; this process alone


def export(
    run: Run,
    target: str | None = None,
    trial: int | None = None,
    progress: Progress = lambda what, done, total: None,
    training: TrainingConfig = SHORT,
    machines: MachineConfig = HERE,
) -> Path:
    """Write one trial's model to ``export/`` in the run directory.

    Args:
        run: where the trial is.
        target: take the best trial under this budget, e.g. ``flops=50%``; by default the run's own target.
        trial: take this trial instead.
        progress: called with (what, done, in all).
        training: the long fine-tune that follows the short one of the search, if it has epochs. Where the same export was
            killed in the middle of it, it goes on from its last epoch.
        machines: that share the long fine-tune.

    Returns:
        The folder: config.json, model.safetensors, report.json and README.md. An existing one is replaced.

    Raises:
        TargetError: no finished trial keeps the target.
        RunError: no such trial, or the reloaded model differs from the one that was saved.
    """
    target = target or next(iter(run.config.study.target), None)
    if trial is None and target is None:
        raise RunError("say which point to export: --target flops=50% or --trial N")
    row = run.trial(trial) if trial is not None else run.best(str(target))
    name = f"trial{trial}" if trial is not None else str(target).replace("=", "").replace("%", "").replace(",", "-")
    work = _Export(run, row, progress, training, machines)
    folder = run.directory / "export" / name
    with replacing(folder) as partial:
        partial.mkdir(parents=True)
        work.write(partial)
    if training.finetune_epochs:
        work.long.remove(work.evaluator)
    return folder


class _Export:
    """The parts of one export."""

    def __init__(
        self, run: Run, row: "pd.Series[Any]", progress: Progress, training: TrainingConfig, machines: MachineConfig
    ) -> None:
        self.run, self.number, self.allocation = run, int(row["number"]), run.allocation(row)
        self.recipe: str | None = row["label"] if row["label"] in RECIPES else None
        self.evaluator = Evaluator(run.config.objective(run.directory), progress)
        self.space = describe(self.evaluator.model, str(row["space"]), run.config.study.multiple)
        self.costs = cost_model(self.evaluator.model, self.space)
        self.long = long_finetune(run, self.number, self.space.name, training)
        self.machines, self.progress = machines, progress

    def write(self, folder: Path) -> None:
        """Write everything that the folder holds."""
        model, trained = self._finetuned(), None
        if self.long.config.finetune_epochs:
            model, trained = self.long.run(self.evaluator, model, self.machines, self.progress)
        config = self.run.config
        save_compressed(folder, model, {
            "architecture": config.model.model,
            "model_args": dict(config.model.model_kwargs),
            "num_classes": getattr(model, "num_classes", None),
            "space": self.space.name,
            "multiple": config.study.multiple,
            "allocation": dict(self.allocation),
            "pretrained_cfg": self.evaluator.preprocessing,
            "operators": self.space.operators(self.allocation),
            "recipe": self.recipe,
        })  # fmt: skip
        report = self._report(model, folder, trained)
        write_json(folder / "report.json", report)
        write_text(folder / "README.md", _card(report, config.model.model, self.space.name))

    def _report(self, model: nn.Module, folder: Path, trained: Trained | None) -> dict[str, Any]:
        top1 = {
            "dense": self._top1(self.evaluator.teacher),
            "dense_finetuned": self._top1(self._reference()),
            "as_built": self._top1(self._built()),
            "short_finetuned": self._top1(self._finetuned()) if trained else None,
            "finetuned": self._top1(model),
        }
        reloaded = _in_fresh_process(folder, model.cpu(), self.evaluator)
        errors = {name: 1 - value for name, value in top1.items() if value is not None}
        if reloaded["max_difference"] > _TOLERANCE or reloaded["macs_fvcore"] != self._kept("macs")["compressed"]:
            raise RunError(f"the reloaded model is not the one that was saved: {reloaded}")
        return {
            "trial": self.number,
            "recipe": self.recipe,
            "target": list(self.run.config.study.target),
            "macs": {**self._kept("macs"), "fvcore_after_reload": reloaded["macs_fvcore"],
                     "torch_after_reload": reloaded["macs_torch"]},
            "params": {**self._kept("params"), "after_reload": reloaded["params"]},
            "test_top1": {**top1, "after_reload": reloaded["top1"]},
            "test_images": self.evaluator.data.size("test"),
            "relative_error": {
                "as_built": _ratio(errors["as_built"], errors["dense_finetuned"]),
                "finetuned": _ratio(errors["finetuned"], errors["dense_finetuned"]),
                "against": f"the dense model given the {'short' if trained else 'same'} fine-tune",
            },
            "max_output_difference_after_reload": reloaded["max_difference"],
            "bytes": (folder / "model.safetensors").stat().st_size,
            "finetune": {**asdict(self.run.config.finetune), "seed": self.run.config.study.seed},
            "long_finetune": self.long.report(trained) if trained else None,
            "environment": environment([name_of(self.evaluator.device)]),
        }  # fmt: skip

    def _kept(self, cost: Cost) -> dict[str, float]:
        dense, compressed = self.costs.dense[cost], self.costs.count(self.allocation, cost)
        return {"dense": dense, "compressed": compressed, "kept": compressed / dense}

    def _top1(self, model: nn.Module) -> float:
        return 1 - evaluate(model.to(self.evaluator.device), self.evaluator.data.evaluation("test")).error

    def _reference(self) -> nn.Module:
        """The dense model given the same fine-tune as the candidates."""
        rows = self.run.trials[(self.run.trials["label"] == DENSE) & (self.run.trials["state"] == "COMPLETE")]
        number = int(rows.iloc[0]["number"]) if len(rows) else -1
        weights = self._weights(number)
        if not weights.exists():
            self.evaluator.evaluate(self.evaluator.space.identity(), self._seed, weights=weights)
        return _filled(copy.deepcopy(self.evaluator.model), weights)

    def _built(self) -> nn.Module:
        """The trial's model before its fine-tune."""
        if self.recipe is not None:
            return make_cut(self.evaluator, self.recipe, self._limits(), self._seed)[1].model
        return self.evaluator.build(self.allocation)

    def _finetuned(self) -> nn.Module:
        """The trial's model after its short fine-tune: from the search's weights, else trained again with the same seed."""
        weights = self._weights(self.number)
        if not weights.exists() and self.recipe is not None:
            evaluate_recipe(self.evaluator, self.recipe, self._limits(), self._seed, weights=weights)
        elif not weights.exists():
            self.evaluator.evaluate(self.allocation, self._seed, weights=weights)
        model = copy.deepcopy(self.evaluator.model)
        resize(model, self.space, self.allocation)
        return _filled(model, weights)

    @property
    def _seed(self) -> int:
        return self.run.config.study.seed

    def _limits(self) -> dict[Cost, float]:
        """The budget that the recipe was run on: the one that its result comes nearest to."""
        budgets = recipe_budgets(self.run.targets(*self.run.config.study.target), self.costs)
        return min(budgets, key=lambda limits: abs(self.costs.load(self.allocation, limits) - 1))

    def _weights(self, number: int) -> Path:
        return self.run.directory / "front" / f"{number:04d}.safetensors"


def _filled(model: nn.Module, weights: Path) -> nn.Module:
    model.load_state_dict(load_file(weights), strict=True)
    return model.eval()


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
