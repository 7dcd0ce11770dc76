"""Evaluator: from an allocation to its score. Built once for a dense model, it evaluates many candidates."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from objectives.cost.spec import Cost
from objectives.dense_model import DenseModel
from objectives.divergence import divergence
from objectives.error import Evaluation
from objectives.measures import Measures
from objectives.runtime.distributed import ALONE, Group
from objectives.runtime.out_of_memory import within_memory
from objectives.runtime.progress import Step
from objectives.runtime.seeding import seed_everything
from objectives.score import AsBuilt, Score
from objectives.training.batch import Batch
from objectives.training.checkpoint import Checkpoint, Passed
from objectives.training.finetune import finetune
from objectives.training.kept import Best, Kept
from spaces.allocation import Allocation
from spaces.errors import DivergedError
from spaces.tensors import save_tensors

OnStep = Callable[[Step], None]
OnRung = Callable[[int, float], bool]  # the optimiser step, and the error there -> whether to stop


def go_on(step: int, error: float) -> bool:
    """Asked at rungs, stops at none: what a trial came to, whose weights may be those of a rung, comes out again."""
    return False


class Evaluator:
    """From an allocation to its score: builds a candidate, fine-tunes it, and measures it against the dense model.

    Args:
        dense: what all candidates share; loaded once, and used by any number of evaluators.
        group: the processes that evaluate every candidate together. All call `evaluate` with the same allocation and seed; all
            get the same figures but for the time. Everything else every process does for itself.

    Raises:
        ConfigError: the batches cannot be divided among so many.
    """

    def __init__(self, dense: DenseModel, group: Group = ALONE) -> None:
        group.divide(dense.objective.data.batch_size)
        self.dense, self.group, self.measures = dense, group, Measures(dense, group)

    def alone(self) -> "Evaluator":
        """An evaluator for what this process does without the others of its group."""
        return self if self.group == ALONE else Evaluator(self.dense)

    def build(self, allocation: Allocation) -> nn.Module:
        """The model of an allocation, before any training, on the CPU."""
        dense = self.dense
        return copy.deepcopy(dense.model) if allocation == dense.space.identity() else dense.factors.build(allocation)

    def divergence(self, allocation: Allocation) -> float:
        """Mean divergence from the dense model of a candidate as built, on the images of the profile, in nats."""
        return self.as_built(allocation).divergence

    def as_built(self, allocation: Allocation) -> AsBuilt:
        """How far a candidate as built is from the dense model, on the images of the profile."""
        model, screening = self.build(allocation).to(self.dense.device), self.dense.screening
        with torch.inference_mode():
            outputs = [model(batch).float().cpu() for batch in screening.images]
        changed = [found.argmax(-1) != answers.argmax(-1) for found, answers in zip(outputs, screening.answers, strict=True)]
        return AsBuilt(
            divergence=divergence(outputs, screening.answers, classes=True, where="a candidate"),
            changed=float(torch.cat(changed).double().mean()),
        )

    def probe(self, allocation: Allocation, lr: float, steps: int) -> float:
        """Divergence of a candidate from the dense model after a fine-tune at another learning rate, on the rung images.

        Args:
            allocation: one of the space.
            lr: peak learning rate.
            steps: optimiser steps, over which the whole schedule is spread; 0 for the candidate as built.

        Returns:
            In nats; NaN where the fine-tune diverged.
        """
        dense = self.dense
        config = replace(dense.objective.finetune, lr=lr, steps=steps)

        def attempt(parts: int) -> float:
            seed_everything(dense.objective.seed)
            model = self.build(allocation).to(dense.device)
            batches = dense.batches.training(steps, dense.objective.seed, parts=parts)
            for _ in finetune(model, batches, config, parts=parts) if steps else ():
                pass
            kl = self.alone().measures.rung_images(model, parts).kl
            assert kl is not None
            return kl

        try:
            return within_memory(attempt)
        except DivergedError:
            return math.nan

    def evaluate(
        self,
        allocation: Allocation,
        seed: int,
        on_step: OnStep = lambda step: None,
        weights: Path | None = None,
        on_rung: OnRung | None = None,
        checkpoint: Path | None = None,
        outcomes: Path | None = None,
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
            outcomes: file for what the fine-tuned model made of every image of the search split (safetensors).

        Raises:
            AllocationError: the space does not offer it.
            DivergedError: the loss or the outputs became NaN or infinite.
        """
        dense, costs = self.dense, self.dense.costs.costs(allocation)
        config = dense.objective.finetune

        def attempt(parts: int) -> Score:
            conditions = (allocation, seed, config, dense.objective.data, dense.objective.split_before)
            saved = Checkpoint(checkpoint, dense.fingerprint, *conditions)
            seed_everything(self.group.seed(seed))
            model = self.build(allocation)
            batches = dense.batches.training(config.steps, seed, self.group, parts)
            try:
                score = self.finish(model, costs, batches, saved.began, 0, on_step, weights, on_rung, parts, saved, outcomes)
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
        batches: Iterable[Batch],
        start: float,
        spent: int = 0,
        on_step: OnStep = lambda step: None,
        weights: Path | None = None,
        on_rung: OnRung | None = None,
        parts: int = 1,
        checkpoint: Checkpoint | None = None,
        outcomes: Path | None = None,
    ) -> Score:
        """Measure a model as it is (`Objective.split_before`), fine-tune it for the steps that are left, and measure it.

        Args:
            model: a compressed model; trained in place, on the device.
            costs: what it costs.
            batches: training batches, at least as many as steps are left.
            start: `time.perf_counter()` when the making of the model began.
            spent: steps of the fine-tune's number that were spent on making the model.
            on_step: called after every optimiser step.
            weights: file for the fine-tuned weights; not kept if None, or if the fine-tune was stopped.
            on_rung: told the error at every rung, answers whether to stop.
            parts: how many every batch is split in.
            checkpoint: keeps the state at rungs; where it has one, the fine-tune goes on from there.
            outcomes: file for what it made of every image of the search split; not kept if None, or if it was stopped.
        """
        if not self.group.leads:
            on_step, weights, on_rung, outcomes = lambda step: None, None, None, None
        objective, model = self.dense.objective, model.to(self.dense.device)
        left = replace(objective.finetune, steps=objective.finetune.steps - spent)
        checkpoint = checkpoint or Checkpoint(None)
        passed = checkpoint.passed or self._begin(model, parts, spent, bool(left.steps))
        passed = replace(passed, parts=max(parts, passed.parts))
        before, rungs, stopped, kept_step = passed.before, passed.rungs, False, spent
        if left.steps:
            kept = Kept(model, passed.best, checkpoint.best())
            batches, resume = islice(batches, passed.step, left.steps), checkpoint.resume
            taken = finetune(model, batches, left, parts=passed.parts, resume=resume, group=self.group)
            steps = (replace(step, step=step.step + spent) for step in taken)
            rungs, stopped = self._climb(model, steps, on_step, on_rung, passed, kept, checkpoint)
            after = None if stopped else self._end(model, kept, passed)
            kept_step = kept.best.step
        else:
            after = before if objective.split_before == "search" else self.measures.search(model, passed.parts)
        if weights is not None and after is not None:
            save_tensors(weights, model.state_dict())
        if outcomes is not None and after is not None and after.outcomes is not None:
            after.outcomes.save(outcomes)
        assert before.kl is not None
        return Score(
            error=after.error if after else None,
            error_before=before.error,
            kl=after.kl if after else None,
            kl_before=before.kl,
            cross_entropy=after.cross_entropy if after else None,
            costs=dict(costs),
            steps=max(rungs) if after is None else objective.finetune.steps,
            kept_step=None if after is None else kept_step,
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
        kept: Kept,
        checkpoint: Checkpoint,
    ) -> tuple[Mapping[int, float], bool]:
        """Train step by step; the errors at the rungs that were reached, and whether the last one was the end."""
        errors = dict(passed.rungs)
        reached = self.dense.objective.rung_steps if self.group.agree(on_rung is not None) else set()
        for step in steps:
            on_step(step)
            if step.step in reached:
                figures = self.measures.rung_images(model, passed.parts)
                errors[step.step] = figures.error
                kept.offer(model, step.step, figures)
                model.train()
                if self.group.agree(on_rung is not None and on_rung(step.step, errors[step.step])):
                    return errors, True
                checkpoint.save(replace(passed, best=kept.best, step=step.step, rungs=dict(errors)), kept.weights)
        return errors, False

    def _begin(self, model: nn.Module, parts: int, spent: int, trains: bool) -> Passed:
        """Measure a model as built: what is told of it, and what its fine-tune has to be better than, where there is one."""
        before = self.measures.as_built(model, parts)
        if not trains:
            return Passed(before=before, best=Best(step=spent, loss=math.inf))
        on_search = self.dense.objective.split_before == "search"
        figures = self.measures.rung_images_of(before) if on_search else self.measures.rung_images(model, parts)
        return Passed(before=before, best=Best.begin(figures, spent))

    def _end(self, model: nn.Module, kept: Kept, passed: Passed) -> Evaluation:
        """Figures of the best weights on the search split; the model has them then."""
        last, steps = self.measures.search(model, passed.parts), self.dense.objective.finetune.steps
        if found := kept.best.beaten(self.measures.rung_images_of(last), steps):
            kept.best = found
            return last
        model.load_state_dict(kept.weights)
        is_known = self.dense.objective.split_before == "search" and kept.best == passed.best
        return passed.before if is_known and passed.before.outcomes is not None else self.measures.search(model, passed.parts)
