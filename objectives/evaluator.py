"""Evaluator: from an allocation to its score. A worker prepares it once and evaluates many candidates."""

import copy
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from objectives.cost.closed_form import Cost, CostModel, cost_model
from objectives.data.loaders import CALIBRATION_BATCH, Data
from objectives.data.odd_folders import odd_folders
from objectives.error import Evaluation, compare, confusion, evaluate, predict
from objectives.latency.probe import measure_latency, share_of_latency
from objectives.latency.table import LATENCY, LatencyTable
from objectives.objective import Objective
from objectives.pictures.check import CHECKED
from objectives.profile import SIZES, Profile, profile_name
from objectives.runtime.device import resolve_device
from objectives.runtime.distributed import ALONE, Group
from objectives.runtime.out_of_memory import within_memory
from objectives.runtime.progress import Progress, Step, counted
from objectives.runtime.seeding import seed_everything
from objectives.score import Score
from objectives.sensitivity import divergence, measure_profile
from objectives.store import read_stored
from objectives.training.checkpoint import Checkpoint, Passed
from objectives.training.finetune import finetune
from spaces.allocation import Allocation
from spaces.errors import DataError, DivergedError
from spaces.factors import Factors, fingerprint
from spaces.models.create import create_model, input_size, preprocessing
from spaces.operators.registry import Variants
from spaces.sites import Space
from spaces.statistics import has_classes, outputs_of
from spaces.tensors import save_tensors
from spaces.vit import describe

OnStep = Callable[[Step], None]
OnRung = Callable[[int, float], bool]  # the optimiser step, and the error there -> whether to stop

# Images of the search split, always the same ones, that the error at a rung is measured on: its standard error is about
# one point at 13 %, and what all candidates share of it does not matter in comparing them.
RUNG_IMAGES = 1000


class Evaluator:
    """An objective made warm: model, images, factors and the dense model's answers stay loaded between candidates.

    Args:
        objective: what to prepare.
        progress: called with (what, done, in all).
        accept: called when data, space, fingerprint and counted costs are known, before anything is computed or written; raises
            where the caller has no use for them.
        group: the processes that evaluate every candidate together. All call `evaluate` with the same allocation and seed, and
            `dense` together; all get the same figures but for the time. Everything else every process does for itself.

    Attributes:
        objective: what was prepared.
        group: the processes that evaluate together.
        device: where candidates are trained.
        model: the dense model, on the CPU.
        data: the splits.
        space: the space of the dense model.
        fingerprint: of the weights, the space and the calibration images.
        counted: MACs and parameters in closed form.
        teacher: the dense model, on the device.
    """

    def __init__(
        self,
        objective: Objective,
        progress: Progress = lambda what, done, total: None,
        accept: Callable[["Evaluator"], None] = lambda evaluator: None,
        group: Group = ALONE,
    ) -> None:
        group.divide(objective.data.batch_size)
        progress("loading", 0, 1)
        self.objective, self.group = objective, group
        self.device = resolve_device(objective.device)
        seed_everything(0)  # a model without weights is the same in every process
        self.model = model = create_model(objective.model)
        self.space = describe(model, objective.space, objective.multiple)
        self.preprocessing = preprocessing(model, objective.model)
        self.counted: CostModel = cost_model(model, self.space)
        checked = objective.factors / CHECKED
        self.data = Data(objective.data, self.preprocessing, getattr(model, "num_classes", None), checked, progress)
        _check_classes(model, self.data)
        self.fingerprint = self._fingerprint(model, objective.space)
        progress("loading", 1, 1)
        accept(self)
        self.data.checked.save(checked)
        self._progress = progress
        self._kept: dict[tuple[object, ...], Factors] = {}
        self.teacher: nn.Module = copy.deepcopy(model).to(self.device) if self.device.type != "cpu" else model

    @cached_property
    def dense(self) -> Evaluation:
        """Figures of the dense model on the search split, as given: measured, or read from the factors' folder."""
        path = self.objective.factors / f"{self.fingerprint}.{self._search_mark}.dense.json"
        figures = read_stored(path, Evaluation.load)
        if figures is None:
            labels = [labels for _, labels in self.data.evaluation("search", group=self.group)]
            figures = compare(zip(self._answers, labels, strict=True), self._answers, self.group)
            if self.group == ALONE:
                figures = replace(figures, confusion=confusion(self._answers, labels))
            if self.group.leads:
                figures.save(path)
        return figures

    def alone(self) -> "Evaluator":
        """The same model, images and factors in a group of one: for what a process does without the others."""
        return self.within(ALONE)

    def within(self, group: Group) -> "Evaluator":
        """The same model, images and factors in another group, which has been joined.

        Raises:
            ConfigError: the batches cannot be divided among so many.
        """
        if group == self.group:
            return self
        group.divide(self.objective.data.batch_size)
        other = copy.copy(self)
        other.group = group
        vars(other).pop("_answers", None)  # on this process's share of the images
        return other

    @cached_property
    def costs(self) -> CostModel:
        """All costs of the space: with latency where the objective has it."""
        table = self.latency
        return self.counted if table is None else self.counted.with_latency(table.dense, table.saved)

    @cached_property
    def latency(self) -> LatencyTable | None:
        """The run's table of latencies: measured, or read from the run directory, at the first use; None without latency."""
        config, path = self.objective.latency, self.objective.factors.parent / LATENCY
        if config is None:
            return None
        table = LatencyTable.load(path, self.fingerprint, self.space) if path.exists() else None
        if table is None or (table.fingerprint, table.config) != (self.fingerprint, config):
            model, images = self.teacher.eval(), self._blank(config.latency_batch_size)
            table = measure_latency(model, self.space, self.counted, images, config, self.fingerprint, self._progress)
            table.save(path)
        return table

    def _blank(self, count: int) -> Tensor:
        """Images to time models with."""
        return torch.zeros(count, *input_size(self.model), device=self.device)

    @property
    def factors(self) -> Factors:
        """What candidates are built from: computed, or read from the factors' folder, at the first use."""
        return self.factors_of(self.space)

    def factors_of(self, space: Space, variants: Variants | None = None) -> Factors:
        """Factors of a space of the dense model, from the calibration images; kept in memory and in the factors' folder."""
        key = (space.name, *sorted((variants or {}).items()))
        if key not in self._kept:
            self._kept[key] = self._factors(space, variants)
        return self._kept[key]

    @property
    def rungs(self) -> set[int]:
        """Optimiser steps after which the error is measured: before the last one."""
        steps = self.objective.finetune.steps
        return {round(share * steps) for share in self.objective.rungs} & set(range(1, steps))

    @cached_property
    def profile(self) -> Profile:
        """What every size of every site costs: measured, or read from the factors' folder, at the first use."""
        name, images = profile_name(self.fingerprint), min(self.objective.data.profile_images, self._calibration_images)
        profile = read_stored(self.objective.factors / name, lambda path: Profile.load(path, self.fingerprint, self.space))
        if profile is None or (profile.images, profile.sizes) != (images, SIZES):
            batches = self.data.calibration(images) if images else ()
            report = partial(self._progress, "profile")
            profile = measure_profile(self.factors, self.teacher, batches, report)
            profile.save(self.objective.factors / name, self.fingerprint)
        return profile

    def divergence(self, allocation: Allocation) -> float:
        """Mean divergence from the dense model of a candidate as built, on the images of the profile, in nats."""
        model = self.build(allocation).to(self.device)
        images, dense = self._screening
        with torch.inference_mode():
            outputs = (outputs_of(model, batch) for batch in images)
            return divergence(outputs, dense, has_classes(model), "a candidate")

    @cached_property
    def _screening(self) -> tuple[list[Tensor], list[Tensor]]:
        """Images of the profile, and the dense model's outputs on them."""
        count = min(self.objective.data.profile_images, self._calibration_images)
        images = [batch.to(self.device) for batch in self.data.calibration(count)]
        with torch.inference_mode():
            return images, [outputs_of(self.teacher.eval(), batch) for batch in images]

    def warm(self) -> None:
        """Compute what every candidate is measured by, so that the first one does not pay for it."""
        _ = self.dense, self._answers

    def build(self, allocation: Allocation) -> nn.Module:
        """The model of an allocation, before any training, on the CPU."""
        return copy.deepcopy(self.model) if allocation == self.space.identity() else self.factors.build(allocation)

    def evaluate(
        self,
        allocation: Allocation,
        seed: int,
        on_step: OnStep = lambda step: None,
        weights: Path | None = None,
        on_rung: OnRung | None = None,
        checkpoint: Path | None = None,
    ) -> Score:
        """Build, fine-tune and measure one candidate; once more with batches in two parts where that ran out of memory.

        All processes of the group must call this; `on_step`, `weights` and `on_rung` matter in the first one alone.

        Args:
            allocation: one of the space.
            seed: of the batches, the augmentation and the dropouts. The same for all candidates of a
                search, so that they differ by their allocation alone.
            on_step: called after every optimiser step.
            weights: file for the fine-tuned weights (safetensors); not kept if None.
            on_rung: told the error at every rung, answers whether to stop there; nothing is measured at rungs if None. A
                fine-tune that goes on is the same to the bit with rungs and without.
            checkpoint: file for the state at the last rung that was passed (safetensors), until the candidate is measured.
                Where it has this candidate's, from a process that was killed, the fine-tune goes on from there, and no rung
                is asked again: on a CPU the result is that of an uninterrupted one, to the bit.

        Raises:
            AllocationError: the space does not offer it.
            DivergedError: the loss or the outputs became NaN or infinite.
        """
        objective, costs = self.objective, self.costs.costs(allocation)

        def attempt(parts: int) -> Score:
            saved = Checkpoint(checkpoint, self.fingerprint, allocation, seed, objective.finetune, objective.data)
            seed_everything(self.group.seed(seed))
            model = self.build(allocation)
            batches = self.data.training(objective.finetune.steps, seed, group=self.group)
            try:
                score = self.finish(model, costs, batches, saved.began, 0, on_step, weights, on_rung, parts, saved)
            except DivergedError:
                saved.remove()
                raise
            saved.remove()
            return score

        if self.group == ALONE:
            return within_memory(attempt)
        checkpoint = None  # each process of a group has its own random state
        return attempt(1)  # where one runs out of memory, the others wait for it

    def finish(
        self,
        model: nn.Module,
        costs: Mapping[Cost, float],
        batches: Iterable[tuple[Tensor, Tensor]],
        start: float,
        spent: int = 0,
        on_step: OnStep = lambda step: None,
        weights: Path | None = None,
        on_rung: OnRung | None = None,
        parts: int = 1,
        checkpoint: Checkpoint | None = None,
    ) -> Score:
        """Measure a model as it is, fine-tune it for the steps that are left, and measure it again.

        Args:
            model: a compressed model; trained in place, on the device.
            costs: its MACs and parameters, and latency where it is known.
            batches: training batches, at least as many as steps are left.
            start: `time.perf_counter()` when the making of the model began.
            spent: steps of the fine-tune's number that were spent on making the model.
            on_step: called after every optimiser step.
            weights: file for the fine-tuned weights; not kept if None, or if the fine-tune was stopped.
            on_rung: told the error at every rung, answers whether to stop.
            parts: how many every batch is split in.
            checkpoint: keeps the state at rungs; where it has one, the fine-tune goes on from there.
        """
        if not self.group.leads:
            on_step, weights, on_rung = lambda step: None, None, None
        config, model = self.objective.finetune, model.to(self.device)
        checkpoint = checkpoint or Checkpoint(None)
        passed = checkpoint.passed or Passed(before=self._measure(model, parts))
        passed = replace(passed, parts=max(parts, passed.parts))
        before, rungs = passed.before, passed.rungs
        after: Evaluation | None = before
        left = replace(config, steps=config.steps - spent)
        if left.steps:
            batches, resume = islice(batches, passed.step, left.steps), checkpoint.resume
            taken = finetune(model, batches, left, self.teacher, parts=passed.parts, resume=resume, group=self.group)
            steps = (replace(step, step=step.step + spent) for step in taken)
            rungs, stopped = self._climb(model, steps, on_step, on_rung, passed, checkpoint)
            after = None if stopped else self._measure(model, passed.parts)
        if weights is not None and after is not None:
            save_tensors(weights, model.state_dict())
        assert before.kl is not None
        return Score(
            error=after.error if after else None,
            error_before=before.error,
            kl=after.kl if after else None,
            kl_before=before.kl,
            macs=int(costs["macs"]),
            params=int(costs["params"]),
            latency=costs.get("latency"),
            steps=max(rungs) if after is None else config.steps,
            seconds=time.perf_counter() - start,
            parts=passed.parts,
            rungs=rungs,
        )

    def _climb(
        self,
        model: nn.Module,
        steps: Iterable[Step],
        on_step: OnStep,
        on_rung: OnRung | None,
        passed: Passed,
        checkpoint: Checkpoint,
    ) -> tuple[Mapping[int, float], bool]:
        """Train step by step; the errors at the rungs that were reached, and whether the last one was the end."""
        errors = dict(passed.rungs)
        reached = self.rungs if self.group.agree(on_rung is not None) else set()
        for step in steps:
            on_step(step)
            if step.step in reached:
                batches = self.data.evaluation("search", RUNG_IMAGES, self.group)
                errors[step.step] = evaluate(model, batches, None, passed.parts, self.group).error
                model.train()
                if self.group.agree(on_rung is not None and on_rung(step.step, errors[step.step])):
                    return errors, True
                checkpoint.save(replace(passed, step=step.step, rungs=dict(errors)))
        return errors, False

    def time(self, model: nn.Module) -> float:
        """Seconds of a call of a model that the table of latencies does not know: timed beside the dense one, on its scale."""
        assert self.latency is not None
        config = self.latency.config
        images = self._blank(config.latency_batch_size)
        return self.latency.dense * share_of_latency(model, self.teacher, images, config)

    @cached_property
    def _answers(self) -> list[Tensor]:
        """Log-probabilities of the dense model on the batches of the search split."""
        images, batch = self.data.size("search") or 0, self.objective.data.eval_batch_size

        def attempt(parts: int) -> list[Tensor]:
            batches = self.data.evaluation("search", group=self.group)
            return predict(
                self.teacher, counted("dense model", batches, images, batch * self.group.size, self._progress), parts
            )

        return within_memory(attempt)

    def _measure(self, model: nn.Module, parts: int) -> Evaluation:
        return evaluate(model, self.data.evaluation("search", group=self.group), self._answers, parts, self.group)

    def _factors(self, space: Space, variants: Variants | None) -> Factors:
        mark = self._fingerprint(self.model, space.name, variants)
        name, progress = f"{mark}.safetensors", self._progress
        stored = read_stored(self.objective.factors / name, lambda path: Factors.load(path, self.model, space, mark))
        if stored is not None:
            return stored
        batches = counted("calibration", self.data.calibration(), self._calibration_images, CALIBRATION_BATCH, progress)
        factors = Factors.compute(self.model, space, batches, self.device, partial(progress, "factors"), variants)
        factors.save(self.objective.factors / name, mark)
        return factors

    @property
    def _search_mark(self) -> str:
        """Of what the figures on the search split depend on besides what the factors do: which images, labels and batches."""
        data = self.objective.data
        folder = None if data.data_dir is None else str(Path(data.data_dir).resolve())
        labels = (data.class_map, data.class_order)
        search = (folder, *labels, data.val_split, data.eval_batch_size, self.data.size("search"))
        return hashlib.sha256(repr(search).encode()).hexdigest()[:8]

    @property
    def _calibration_images(self) -> int:
        size = self.objective.data.calibration_size
        return min(size, self.data.size("train") or size)

    def _fingerprint(self, model: nn.Module, space: str, variants: Variants | None = None) -> str:
        """Of everything that the factors depend on: weights, space, preprocessing, and which images calibrate."""
        objective, data = self.objective, self.objective.data
        images = (data.dataset, data.train_split, data.search_split, data.search_size, data.holdout, data.split_seed)
        calibration: tuple[object, ...] = (*images, data.calibration_size, self.data.size("train"))
        if self.data.mark is not None:  # of files also their names, labels and how they are read
            calibration = (*calibration, self.data.mark, *self.data.reading.to_json().items())
        chosen = sorted((variants or {}).items())
        return fingerprint(model, space, objective.multiple, self.preprocessing, calibration, *chosen)


def _check_classes(model: nn.Module, data: Data) -> None:
    classes = getattr(model, "num_classes", None)
    if data.num_classes is not None and classes != data.num_classes:
        odd = odd_folders(data.found, classes)
        raise DataError(
            f"the images have {data.num_classes} classes, the model has {classes}: fine-tune the model on these images first "
            f"and give it with --checkpoint{f'; or look at the folders: {odd}' if odd else ''}"
        )
