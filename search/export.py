"""A point of the front as a folder that loads by itself, checked after reload in a fresh process."""

import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from objectives.cost import Cost, cost_model
from objectives.device import name_of
from objectives.error import evaluate
from objectives.evaluator import Evaluator
from objectives.recipes import RECIPES, evaluate_recipe, make_cut
from search.environment import environment
from search.pick import Point
from search.run import Run
from search.table import DENSE
from search.targets import format_count, format_kept, recipe_budgets
from search.weights import read_weights, weights_in, weights_of
from spaces.compressed import save_compressed
from spaces.errors import RunError
from spaces.files import write_json, write_text
from spaces.vit import describe, resize

_TOLERANCE = 1e-4
_PROBE_IMAGES = 32


def write_export(folder: Path, run: Run, point: Point, evaluator: Evaluator, scratch: Path) -> None:
    """Write the folder of a point: config.json, model.safetensors, report.json and README.md.

    Args:
        folder: an empty one.
        run: where the point is.
        point: what to export; the weights of one that is no trial are in `scratch`.
        evaluator: of the run.
        scratch: folder for weights that are made again, each once; they are `search.weights.weights_in` it.

    Raises:
        RunError: the reloaded model differs from the one that was saved.
        DivergedError: a fine-tune that was made again diverged.
    """
    _Export(run, point, evaluator, scratch).write(folder)


class _Export:
    """The parts of one export."""

    def __init__(self, run: Run, point: Point, evaluator: Evaluator, scratch: Path) -> None:
        self.run, self.point, self.evaluator, self.scratch = run, point, evaluator, scratch
        self.number, self.allocation = point.number, point.allocation
        self.recipe: str | None = point.label if point.label in RECIPES else None
        self.space = describe(self.evaluator.model, point.space, run.config.study.multiple)
        self.costs = cost_model(self.evaluator.model, self.space)

    def write(self, folder: Path) -> None:
        """Write everything that the folder holds."""
        model = self._finetuned()
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
            "origin": self._origin(),
        })  # fmt: skip
        report = self._report(model, folder)
        write_json(folder / "report.json", report)
        write_text(folder / "README.md", _card(report, config.model.model, self.space.name))

    def _report(self, model: nn.Module, folder: Path) -> dict[str, Any]:
        top1 = {
            "dense": self._top1(self.evaluator.teacher),
            "dense_finetuned": self._top1(self._reference()),
            "as_built": self._top1(self._built()),
            "finetuned": self._top1(model),
        }
        reloaded = _in_fresh_process(folder, model.cpu(), self.evaluator)
        errors = {name: 1 - value for name, value in top1.items()}
        if reloaded["max_difference"] > _TOLERANCE or reloaded["macs_fvcore"] != self._kept("macs")["compressed"]:
            raise RunError(f"the reloaded model is not the one that was saved: {reloaded}")
        return {
            "trial": self.number,
            "recipe": self.recipe,
            "origin": self._origin(),
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
            "environment": environment([name_of(self.evaluator.device)]),
        }  # fmt: skip

    def _origin(self) -> dict[str, Any]:
        return self.point.origin(self.run.summary["fingerprint"])

    def _kept(self, cost: Cost) -> dict[str, float]:
        dense, compressed = self.costs.dense[cost], self.costs.count(self.allocation, cost)
        return {"dense": dense, "compressed": compressed, "kept": compressed / dense}

    def _top1(self, model: nn.Module) -> float:
        return 1 - evaluate(model.to(self.evaluator.device), self.evaluator.data.evaluation("test")).error

    def _reference(self) -> nn.Module:
        """The dense model given the same fine-tune as the candidates."""
        rows = self.run.trials[(self.run.trials["label"] == DENSE) & (self.run.trials["state"] == "COMPLETE")]
        number = int(rows.iloc[0]["number"]) if len(rows) else None
        identity = self.evaluator.space.identity()
        state = self._state(number, DENSE, lambda weights: self.evaluator.evaluate(identity, self._seed, weights=weights))
        return _filled(copy.deepcopy(self.evaluator.model), state)

    def _built(self) -> nn.Module:
        """The trial's model before its fine-tune."""
        if self.recipe is not None:
            return make_cut(self.evaluator, self.recipe, self._limits(), self._seed)[1].model
        return self.evaluator.build(self.allocation)

    def _finetuned(self) -> nn.Module:
        """The point's model: from weights that the search or this export has kept, else trained again with the same seed."""

        def make(weights: Path) -> None:
            if self.recipe is not None:
                evaluate_recipe(self.evaluator, self.recipe, self._limits(), self._seed, weights=weights)
            else:
                self.evaluator.evaluate(self.allocation, self._seed, weights=weights)

        model = copy.deepcopy(self.evaluator.model)
        resize(model, self.space, self.allocation)
        return _filled(model, self._state(self.number, self.point.name, make))

    def _state(self, number: int | None, name: str, make: Callable[[Path], object]) -> dict[str, Tensor]:
        """Weights of a trial that the search has kept, or those that this export has made or makes now.

        A search that runs may drop a trial's weights at any moment; what is made is not left to the run.
        """
        state = None if number is None else read_weights(weights_of(self.run.directory, number))
        if state is None:
            made = weights_in(self.scratch, name)
            if not made.exists():
                make(made)
            state = load_file(made)
        return state

    @property
    def _seed(self) -> int:
        return self.run.config.study.seed

    def _limits(self) -> dict[Cost, float]:
        """The budget that the recipe was run on: the one that its result comes nearest to."""
        budgets = recipe_budgets(self.run.targets(*self.run.config.study.target), self.costs)
        return min(budgets, key=lambda limits: abs(self.costs.load(self.allocation, limits) - 1))


def _filled(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    model.load_state_dict(state, strict=True)
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
