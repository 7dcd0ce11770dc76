"""A point of the front as a folder that loads by itself, checked after reload in a fresh process."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from objectives.cost.closed_form import cost_model
from objectives.cost.spec import Cost
from objectives.deploy.config import FormatConfig
from objectives.deploy.folder import Handover
from objectives.deploy.tested import tested
from objectives.error import evaluate
from objectives.evaluator import Evaluator, OnStep, go_on
from objectives.recipes.registry import RECIPES, evaluate_recipe, make_cut
from objectives.runtime.device import name_of
from objectives.runtime.progress import Progress, told_steps
from objectives.training.config import TrainingConfig
from objectives.training.long_finetune import Trained
from search.budgets.reach import recipe_limits
from search.deploy.long_finetune import described, long_finetune, run_long_finetune
from search.deploy.model_card import card
from search.deploy.points import PREDICTED, Point
from search.deploy.reference import Wrong, read_reference, reference_mark, write_reference
from search.evidence.intervals import difference_interval
from search.evidence.options import Preference
from search.layout import weights_in, weights_of
from search.run.provenance import environment
from search.run.run import Run
from search.run.weights import read_weights
from search.runners.resources import MachineConfig
from spaces.allocation import Allocation
from spaces.errors import RunError
from spaces.files import write_json, write_text
from spaces.sites import DROP
from spaces.vit import describe, resize


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How points are exported.

    Attributes:
        exact: where the best trial leaves some of its target, build a point on it; it is taken if it is not worse.
        into: folder for the folders, in place of ``export/`` in the run directory.
        force: whether to write what is there already again.
        data_dir: where the images of the run are now; None where they were.
        training: the long fine-tune that follows the short one of the search, if it has epochs. Where the same export was
            killed in the middle of it, it goes on from its last epoch.
        machines: that share the long fine-tune.
        output: formats and dtype.
        prefer: what decides under a target among trials that cannot be told apart; None for what the run says.
    """

    exact: bool = False
    into: Path | None = None
    force: bool = False
    data_dir: str | None = None
    training: TrainingConfig = field(default_factory=TrainingConfig)
    machines: MachineConfig = field(default_factory=MachineConfig)
    output: FormatConfig = field(default_factory=FormatConfig)
    prefer: Preference | None = None


def write_export(
    folder: Path,
    run: Run,
    point: Point,
    evaluator: Evaluator,
    scratch: Path,
    options: ExportOptions,
    command: str,
    progress: Progress = lambda what, done, total: None,
) -> None:
    """Write the folder of a point: config.json, model.safetensors, report.json and README.md, and other formats as wanted.

    Args:
        folder: an empty one; laid out for the Hugging Face hub.
        run: where the point is.
        point: what to export; the weights of one that is no trial are in `scratch`.
        evaluator: of the run.
        scratch: folder for weights that are made again, each once; they are `search.layout.weights_in` it.
        options: how.
        command: that makes it again, for the report.
        progress: called with (what, done, in all).

    Raises:
        RunError: a reloaded model differs from the one that was saved.
        CheckpointError: the model cannot be written in one of the formats.
        DivergedError: a fine-tune that was made again diverged.
    """
    _Export(run, point, evaluator, scratch, options, command, progress).write(folder)


class _Export:
    """The parts of one export."""

    def __init__(
        self,
        run: Run,
        point: Point,
        evaluator: Evaluator,
        scratch: Path,
        options: ExportOptions,
        command: str,
        progress: Progress,
    ) -> None:
        self.run, self.point, self.scratch = run, point, scratch
        self.evaluator, self.dense = evaluator, evaluator.dense
        self.options, self.command, self.progress = options, command, progress
        self.number, self.allocation = point.number, point.allocation
        self.as_built = point.label == PREDICTED  # it has no short fine-tune, and is not compared with the dense model's
        self.recipe: str | None = point.label if point.label in RECIPES else None
        self.space = describe(self.dense.model, point.space, run.config.study.multiple)
        self.costs = cost_model(self.dense.model, self.space)
        self.long = long_finetune(run, point, options.training)

    def write(self, folder: Path) -> None:
        """Write everything that the folder holds."""
        model, trained = self._finetuned(), None
        if self.long.config.finetune_epochs:
            model, trained = run_long_finetune(self.long, self.dense, model, self.options.machines, self.progress)
        measured = self._handover(model).write(folder)
        report = self._report(model, measured, trained)
        write_json(folder / "report.json", report)
        write_text(folder / "README.md", card(report, self.run.config, self.dense.model, self.space.name))

    def _handover(self, model: nn.Module) -> Handover:
        config, dense, data = self.run.config, self.dense.model, self.dense.data
        classes = getattr(model, "num_classes", None)
        names = data.class_names
        description = {
            "architecture": config.model.model,
            "model_args": dict(config.model.model_kwargs),
            "num_classes": classes,
            "label_names": names if names and len(names) == classes else None,
            "class_order": data.found.class_order,
            "space": self.space.name,
            "multiple": config.study.multiple,
            "allocation": dict(self.allocation),
            "pretrained_cfg": self.dense.preprocessing,
            "pictures": data.reading.to_json(),
            "operators": self.space.operators(self.allocation),
            "recipe": self.recipe,
            "origin": self._origin(),
            "training": described(self.options.training),
        }
        return Handover(
            model=model, dense=dense, description=description, identity=self.space.identity(), data=data,
            device=self.dense.device, output=self.options.output, merges=self.space.merges(self.allocation),
            progress=self.progress,
        )  # fmt: skip

    def _report(self, model: nn.Module, measured: dict[str, Any], trained: Trained | None) -> dict[str, Any]:
        dense, reloaded = measured["dense"], measured["compressed"]
        costs = {cost: self._kept(cost) for cost in self.costs.names}
        if reloaded["macs_fvcore"] != costs["macs"]["compressed"]:
            raise RunError(f"the reloaded model is not the one that was saved: it has {reloaded['macs_fvcore']:,} MACs")
        finetuned, compared, against = self._wrong(model, "the model"), self._compared(), "the dense model"
        if not self.as_built:
            against = f"the dense model given the {'short' if trained else 'same'} fine-tune"
        has_short = trained is not None and not self.as_built
        short = self._wrong(self._finetuned(), "the model after its short fine-tune") if has_short else None
        top1 = {
            "dense": dense["top1"],
            "dense_finetuned": None if self.as_built else _top1(compared),
            "as_built": _top1(self._wrong(self._built(), "the model as built")),
            "short_finetuned": None if short is None else _top1(short),
            "finetuned": _top1(finetuned),
        }
        errors = {name: 1 - value for name, value in top1.items() if value is not None}
        reference = 1 - _top1(compared)
        return {
            "trial": self.number,
            "recipe": self.recipe,
            "origin": self._origin(),
            "target": list(self.run.config.study.target),
            "command": self.command,
            "class_order": self.dense.data.found.class_order,
            "dtype": self.options.output.dtype,
            "tokens": self._tokens(),
            "dropped": [branch for branch, operator in self.space.moved(self.allocation) if operator.name == DROP],
            "costs": costs,
            "macs": {**costs["macs"],
                     "fvcore_after_reload": reloaded["macs_fvcore"], "torch_after_reload": reloaded["macs_torch"],
                     "dense_fvcore": dense["macs_fvcore"], "dense_torch": dense["macs_torch"]},
            "params": {**costs["params"], "after_reload": reloaded["params"], "dense_after_reload": dense["params"]},
            "bytes": {"dense": measured["dense_bytes"], "compressed": measured["formats"]["safetensors"]["bytes"]},
            "peak_memory": {batch: {"dense": dense["peak_memory"][batch], "compressed": value}
                            for batch, value in reloaded["peak_memory"].items()},
            "latency": measured["latency"],
            "test_top1": {**top1, "after_reload": reloaded["top1"]},
            "test_images": self.dense.data.size("test"),
            "left_out": self.dense.data.checked.report(),
            "relative_error": {
                "as_built": _ratio(errors["as_built"], reference),
                "finetuned": _ratio(errors["finetuned"], reference),
                "against": against,
            },
            "difference": asdict(difference_interval(finetuned, compared)),
            "expected_error": self._expected(errors.get("short_finetuned", errors["finetuned"])),
            "formats": measured["formats"],
            "preprocessing": measured["preprocessing"],
            "measured_on": {"devices": measured["devices"], "threads": measured["threads"]},
            "finetune": None if self.as_built else {**asdict(self.run.finetune), "seed": self._own_seed},
            "long_finetune": self.long.report(trained) if trained else None,
            "environment": environment([name_of(self.dense.device)]),
        }  # fmt: skip

    def _tokens(self) -> dict[str, Any] | None:
        """Patch tokens that enter the first block, and that leave the attention of every block."""
        if not self.space.tokens:
            return None
        return {"entering": self.space.tokens[0].dense, "leaving": list(self.space.schedule(self.allocation))}

    def _origin(self) -> dict[str, Any]:
        return self.point.origin(self.run.summary.fingerprint)

    def _kept(self, cost: Cost) -> dict[str, float]:
        dense, compressed = self.costs.dense[cost], self.costs.count(self.allocation, cost)
        return {"dense": dense, "compressed": compressed, "kept": compressed / dense}

    def _expected(self, measured: float) -> dict[str, Any] | None:
        """The error that the search expected after the short fine-tune, and whether the test split shows it."""
        found = self.point.expected
        if found is None:
            return None
        return {**asdict(found), "measured": measured, "within": found.low <= measured <= found.high}

    def _wrong(self, model: nn.Module, what: str) -> Wrong:
        """Whether its answer to each image of the test split is wrong."""
        outcomes = evaluate(model.to(self.dense.device), tested(self.dense.data, what, self.progress)).outcomes
        assert outcomes is not None
        found: Wrong = outcomes.wrong.numpy()
        return found

    def _compared(self) -> Wrong:
        """What the model is compared with: the dense model, given the same fine-tune where it had one."""
        return self._wrong(copy.deepcopy(self.dense.model), "the dense model") if self.as_built else self._reference()

    def _reference(self) -> Wrong:
        """The same of the dense model given the same fine-tune as the candidates: measured by the first export of a run."""
        mark = reference_mark(self.dense, self._seed)
        wrong = read_reference(self.run.directory, mark)
        if wrong is None:
            identity = self.dense.space.identity()
            model = copy.deepcopy(self.dense.model)
            if self.run.finetune.steps:
                model = self._filled(model, None, "the dense model", lambda *made: self._evaluate(identity, self._seed, *made))
            wrong = self._wrong(model, "the dense model after the same fine-tune")
            write_reference(self.run.directory, mark, wrong)
        return wrong

    def _built(self) -> nn.Module:
        """The trial's model before its fine-tune."""
        if self.recipe is not None:
            with told_steps(f"{self.recipe} again", self.run.finetune.steps, self.progress) as on_step:
                return make_cut(self.dense, self.recipe, self._limits(), self._seed, on_step)[1].model
        return self.evaluator.build(self.allocation)

    def _finetuned(self) -> nn.Module:
        """The point's model: from weights that the search or this export has kept, else trained again with the same seed."""

        def make(weights: Path, on_step: OnStep) -> None:
            if self.recipe is not None:
                evaluate_recipe(self.evaluator, self.recipe, self._limits(), self._seed, on_step, weights)
            else:
                self._evaluate(self.allocation, self._own_seed, weights, on_step)

        model = copy.deepcopy(self.dense.model)
        resize(model, self.space, self.allocation)
        return self._filled(model, self.number, self.point.name, make)

    def _evaluate(self, allocation: Allocation, seed: int, weights: Path, on_step: OnStep) -> None:
        self.evaluator.evaluate(allocation, seed, on_step, weights, go_on)

    def _filled(self, model: nn.Module, number: int | None, name: str, make: Callable[[Path, OnStep], object]) -> nn.Module:
        """A model with the weights of a trial that the search has kept, or with those that this export has made or makes now.

        A search that runs may drop a trial's weights at any moment; what is made is not left to the run.
        """
        state = None if number is None else read_weights(weights_of(self.run.directory, number), model)
        if state is None:
            made = weights_in(self.scratch, name)
            if not made.exists():
                with told_steps(f"short fine-tune of {name}", self.run.finetune.steps, self.progress) as on_step:
                    make(made, on_step)
            state = load_file(made)
        model.load_state_dict(state, strict=True)
        return model.eval()

    @property
    def _seed(self) -> int:
        return self.run.config.study.seed

    @property
    def _own_seed(self) -> int:
        """Of the point's short fine-tune: a repeat has another than the run's."""
        found = None if self.number is None else self.run.trial(self.number).seed
        return self._seed if found is None else found

    def _limits(self) -> dict[Cost, float]:
        """The budget that the recipe was run on: the one that its result comes nearest to."""
        budgets = [self.run.budget(target) for target in self.run.config.study.targets]
        return min(recipe_limits(budgets, self.costs), key=lambda limits: abs(self.costs.load(self.allocation, limits) - 1))


def _top1(wrong: Wrong) -> float:
    return 1 - float(wrong.mean())


def _ratio(error: float, reference: float) -> float | None:
    return error / reference if reference > 0 else None
