"""Audit: whether the short fine-tune ranks candidates as a long one does.

Points of the front and trials of similar cost are fine-tuned again, with many times the steps and other seeds. Every
measurement is appended to audit.jsonl as it is made, so that an audit goes on where it was; audit.json holds what follows.
"""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from objectives.cost.spec import counted_costs
from objectives.dense_model import load_dense
from objectives.error import evaluate
from objectives.evaluator import Evaluator, OnStep, go_on
from objectives.runtime.device import name_of, resolve_device
from objectives.runtime.progress import Progress, told_steps
from objectives.training.run_batches import remove_batches
from search.config import LEAST_AUDITED
from search.fidelity.judge import warn
from search.fidelity.options import check_size
from search.fidelity.rank_correlation import agreement, candidates, similar, spread_over
from search.report.write import render
from search.run.audit_file import Agreement, Audit, AuditedPoint, Steps, write_audit
from search.run.continuation import check_same_model
from search.run.directory import lock_run
from search.run.finished_trial import FinishedTrial
from search.run.provenance import environment
from search.run.run import Run
from spaces.errors import DivergedError, RunError
from spaces.files import cut_torn_line
from spaces.schema import NUMBER, WHOLE, check, parse_json
from spaces.scratch import Scratch

_LOG = "audit.jsonl"
_LINE = {"trial": WHOLE, "seed": WHOLE, "steps": WHOLE, "error": NUMBER, "test_error": NUMBER, "seconds": NUMBER}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One long fine-tune: a line of the log.

    Attributes:
        trial: its number.
        seed: of the fine-tune.
        steps: of the fine-tune.
        error: after it, on the search split.
        test_error: the same on the test split.
        seconds: wall time.
    """

    trial: int
    seed: int
    steps: int
    error: float
    test_error: float
    seconds: float


Measured = Mapping[tuple[int, int], Measurement]  # (trial, seed) -> its long fine-tune


def audit(
    run: Run,
    points: int = 8,
    factor: int = 10,
    seeds: int = 2,
    progress: Progress = lambda what, done, total: None,
    notice: Callable[[str], None] = lambda text: None,
) -> Audit:
    """Fine-tune trials of a run for longer, and compare their order with that of the search. Goes on where it was.

    Args:
        run: a finished search.
        points: trials along the front, by their cost, and as many of similar cost, by their error. The dense model
            and what recipes made are left out. Where fewer than three are left, a group has no tau.
        factor: steps of the long fine-tune over those of the search's.
        seeds: long fine-tunes of every trial: with the run's seed + 1, + 2 and so on, never with its own.
        progress: called with (what, optimiser steps done, in all).
        notice: called with what makes errors on these images mean less than they seem, in a sentence.

    Returns:
        What it found, as audit.json keeps it.

    Raises:
        ConfigError: fewer than three points, two seeds or twice the steps.
        RunError: fewer than three trials have finished, the run's trials are not fine-tuned, or a long fine-tune diverged.
    """
    check_size(points, factor, seeds)
    _check(run)
    lock = lock_run(run.directory)
    try:
        work = _Audit(run, points, factor, seeds)
        result = work.result(work.measured(progress, notice))
        remove_batches(run.directory)
        write_audit(run.directory, result)
        render(run)
    finally:
        lock.close()
    return result


def _check(run: Run) -> None:
    if run.finetune.steps == 0:
        raise RunError(f"the trials of {run.directory} were measured as built: there is no short fine-tune to audit")


class _Audit:
    """The parts of one audit."""

    def __init__(self, run: Run, points: int, factor: int, seeds: int) -> None:
        self.run, self.factor, self.config = run, factor, run.config
        self.steps = factor * run.finetune.steps
        self.seeds = [self.config.study.seed + 1 + index for index in range(seeds)]
        self.cost = run.summary.first_cost
        finished, front = candidates(run.ended), {point.number for point in run.summary.front}
        if len(finished) < LEAST_AUDITED:
            raise RunError(
                f"an audit needs {LEAST_AUDITED} finished trials besides the dense model and recipes, but {run.directory} has "
                f"{len(finished)}: search with more --trials"
            )
        self.front = spread_over([trial for trial in finished if trial.number in front], self.cost, points)
        self.similar = spread_over(similar(finished, self.cost), "error", points)
        chosen = {trial.number: trial for trial in (*self.front, *self.similar)}.values()
        self.trials = sorted(chosen, key=lambda trial: (trial.costs[self.cost], trial.number))

    def measured(self, progress: Progress, notice: Callable[[str], None]) -> Measured:
        """Every long fine-tune; what is missing in the log is measured first."""
        path = self.run.directory / _LOG
        cut_torn_line(path)
        known = {(entry.trial, entry.seed): entry for entry in _read(path) if entry.steps == self.steps}
        wanted = [(trial, seed) for seed in self.seeds for trial in self.trials]
        missing = [(trial, seed) for trial, seed in wanted if (trial.number, seed) not in known]
        for index, (trial, seed) in enumerate(missing):
            what = f"audit {len(wanted) - len(missing) + index + 1} of {len(wanted)}: trial {trial.number}, seed {seed}"
            if index == 0:
                evaluator = self._evaluator(progress)
                warn(evaluator.dense.data, notice)
                evaluator.dense.keep_search()
            evaluator.dense.keep_training(seed=seed)
            with told_steps(what, self.steps, progress) as on_step:
                entry = self._measure(evaluator, trial, seed, on_step)
            with path.open("a", encoding="utf-8") as log:
                log.write(json.dumps(asdict(entry)) + "\n")
            known[trial.number, seed] = entry
        return known

    def _evaluator(self, progress: Progress) -> Evaluator:
        if self.config.machines.threads is not None:
            torch.set_num_threads(self.config.machines.threads)
        objective = self.config.objective(self.run.directory)
        objective = replace(objective, finetune=replace(objective.finetune, steps=self.steps))
        dense = load_dense(objective, progress, lambda dense: check_same_model(self.run.directory, dense.fingerprint))
        return Evaluator(dense)

    def _measure(self, evaluator: Evaluator, trial: FinishedTrial, seed: int, on_step: OnStep) -> Measurement:
        model = evaluator.build(trial.allocation)
        try:
            with Scratch() as folder:
                weights = folder / "weights.safetensors"
                score = evaluator.evaluate(trial.allocation, seed, on_step, weights, go_on)
                model.load_state_dict(load_file(weights))
        except DivergedError as error:
            raise RunError(f"the long fine-tune of trial {trial.number} with seed {seed} failed: {error}") from error
        assert score.error is not None, "no rung stops it"
        test = evaluate(model.to(evaluator.dense.device), evaluator.dense.data.evaluation("test"))
        return Measurement(
            trial=trial.number, seed=seed, steps=self.steps, error=score.error, test_error=test.error, seconds=score.seconds
        )

    def result(self, measured: Measured) -> Audit:
        """What follows from them."""
        points = tuple(self._point(trial, measured) for trial in self.trials)
        return Audit(
            factor=self.factor,
            steps=Steps(short=self.run.finetune.steps, long=self.steps),
            seeds=tuple(self.seeds),
            cost=self.cost,
            points=points,
            front=_agreement([point for point in points if point.front]),
            similar=_agreement([point for point in points if point.similar]),
            environment=environment([name_of(resolve_device(self.config.machines.device))]),
        )

    def _point(self, trial: FinishedTrial, measured: Measured) -> AuditedPoint:
        found = [measured[trial.number, seed] for seed in self.seeds]
        long, test = tuple(entry.error for entry in found), tuple(entry.test_error for entry in found)
        return AuditedPoint(
            number=trial.number,
            label=trial.label,
            kept={spec.name: trial.kept[spec.name] for spec in counted_costs()},
            front=trial in self.front,
            similar=trial in self.similar,
            short=trial.objective("error"),
            long=long,
            mean=statistics.mean(long),
            spread=statistics.stdev(long),
            test=test,
            test_mean=statistics.mean(test),
            test_spread=statistics.stdev(test),
        )


def _agreement(points: Sequence[AuditedPoint]) -> Agreement:
    long = list(zip(*(point.long for point in points), strict=True))
    return agreement([point.short for point in points], long, [point.test_mean for point in points])


def _read(path: Path) -> Iterator[Measurement]:
    """The lines of the log.

    Raises:
        RunError: one of them is no measurement.
    """
    for index, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), start=1):
        try:
            entry = parse_json(line)
            check(entry, _LINE)
        except ValueError as error:
            raise RunError(f"{path}, line {index} cannot be read ({error}): remove this line, to measure it again") from error
        yield Measurement(**{name: entry[name] for name in _LINE})
