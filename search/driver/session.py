"""A search from its configuration to its results: prepare run and runner, loop, keep tables and weights up to date."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from objectives.cost.check import check_count
from objectives.cost.closed_form import CostModel, cost_model
from objectives.cost.spec import MAIN
from objectives.evaluator import Evaluator
from objectives.objective import Objective
from objectives.recipes.registry import RECIPES, check_reach, recipe_of
from objectives.runtime.distributed import Group
from objectives.runtime.progress import Step
from search.budgets.knapsack import knapsack_of
from search.budgets.parametrisation import Budgets, Limits, parametrise
from search.budgets.reach import check_jointly, reach_of, recipe_limits
from search.budgets.targets import Budget, Reach, budgets_of
from search.config import SearchConfig
from search.driver.baselines import enqueue_baselines, recipes_of
from search.driver.forecast import Outlook, outlook_of
from search.driver.interrupts import Interrupts
from search.driver.loop import Loop
from search.driver.opening import opening_of
from search.driver.pace import Pace, expect
from search.driver.publisher import Views
from search.fidelity.audit import audit
from search.fidelity.judge import judge, tell_found
from search.layout import JOURNAL
from search.run.activity import Running
from search.run.continuation import check_same_latencies, check_same_model, check_same_run, identity_of
from search.run.directory import default_output, lock_run, make_directory, remove_if_empty
from search.run.edge import lower_edges
from search.run.losses import check_nothing_lost
from search.run.model import model_of_run
from search.run.places import check_no_export
from search.run.provenance import environment
from search.run.run import Run
from search.run.tables import describe_space
from search.runners.base import Listener, Runner
from search.runners.in_process import InProcessRunner
from search.runners.job import Need
from search.runners.resources import MachineConfig
from search.study.early_stopping import reason_to_stop
from search.study.replay import journal_numbers
from search.study.study import Study
from search.trial import Proposal, Trial
from spaces.errors import ConfigError, RunError, first_line
from spaces.files import remove_partials
from spaces.models.create import weights_of
from spaces.scratch import remove_abandoned
from spaces.vit import describe

_LEAST_LIMIT = 600.0  # seconds before any trial is taken to hang
_PATIENCE = 10.0  # times the forecast, or the slowest trial so far


class Reporter(Protocol):
    """Whoever watches a search."""

    def stage(self, what: str, done: int, total: int) -> None: ...

    def began(self, directory: Path, summary: dict[str, Any], outlook: Outlook, steps: int) -> None: ...

    def started(self, proposal: Proposal) -> None: ...

    def step(self, number: int, step: Step) -> None: ...

    def finished(self, trial: Trial, summary: dict[str, Any], count: int) -> None: ...

    def say(self, text: str) -> None: ...

    def notice(self, text: str) -> None: ...


def launch(config: SearchConfig, reporter: Reporter) -> Run:
    """Start the search in `config.study.output`, or continue the one that is there.

    Raises:
        CompressionError: anything that the user can put right, before a trial is paid for.
        RunError: every trial failed, three in a row failed for the same cause, or too few finished for the audit.
        KeyboardInterrupt: after Ctrl-C; what finished is kept.
    """
    began = time.monotonic()
    config = model_of_run(config)
    directory = Path(config.study.output or default_output(config))
    check_no_export(directory)
    check_same_run(directory, config)
    check_same_latencies(directory, config)
    if config.machines.threads is not None:
        torch.set_num_threads(config.machines.threads)
    config = replace(config, study=replace(config.study, output=str(directory)))
    make_directory(directory)
    with lock_run(directory):
        done = _launch(config, directory, reporter, began)
    run = Run(directory)
    if config.study.audit and done:
        audit(run, config.study.audit, progress=reporter.stage)
    return run


def _launch(config: SearchConfig, directory: Path, reporter: Reporter, began: float) -> bool:
    """What `launch` does while no other process may; whether the search is done."""
    remove_partials(directory)
    remove_abandoned()
    try:
        if config.study.storage is None:  # before anything is computed
            path = directory / JOURNAL
            check_nothing_lost(directory, journal_numbers(path), str(path), "restore it from a backup")
        search = _Search(config, directory, reporter, began)
    except BaseException:
        remove_if_empty(directory)
        raise
    try:
        search.run()
    finally:
        search.close()
    return search.done


class _Search:
    """One launch: what `launch` prepared, and what is kept up to date while it runs."""

    def __init__(self, config: SearchConfig, directory: Path, reporter: Reporter, began: float) -> None:
        self.config, self.directory, self.reporter, self._began = config, directory, reporter, began
        self._seconds = 0.0  # of the slowest trial, or the forecast
        self._judged = False
        self.running = Running(directory, config.finetune.steps)
        study, self.evaluator = config.study, self._open()
        self.runner = self._runner()
        try:
            # What is computed once per run is computed before the run is written: what stops here leaves no run behind.
            self.runner.prepare(self._needs())
            self._settle_latency()
            space, costs = self.evaluator.space, self.evaluator.costs
            knapsack = knapsack_of(self.evaluator, study.measured_profile) if study.recipe is None else None
            self.budgets = Budgets(space, costs, self.limits, [self._low(limits) for limits in self.limits])
            self.parametrisation = parametrise(study.parametrisation, self.budgets, knapsack)
            self.objectives = ("error", *study.minimised)  # the sampler learns from the first one
            screening = study.screening and config.data.profile_images > 0
            self.study = Study(
                directory, self.parametrisation, self.objectives, study.sampler, study.seed, screening,
                study.storage, identity_of(config, self.evaluator.fingerprint) if study.storage else None,
            )  # fmt: skip
        except BaseException:
            self.runner.close()
            raise
        try:
            self.study.check_nothing_lost()
            enqueue_baselines(self.study, self.parametrisation, study, recipe_limits(self.targets, costs))
            self.views = Views(self.study, self.targets, self._facts(), config.machines.disk_limit)
        except BaseException:
            self.close()
            raise

    def _open(self) -> Evaluator:
        """The evaluator of this process: trials run on it, or it alone knows the model for those that run elsewhere."""
        objective = self.config.objective(self.directory)
        if self.config.machines.chosen_runner != "in-process":
            objective = replace(objective, device="cpu")
        Group(size=self.config.machines.gpus_per_trial).divide(self.config.data.batch_size)
        return Evaluator(objective, self.reporter.stage, self._accept)

    def _runner(self) -> Runner:
        listener = Listener(
            stage=self.reporter.stage, measured=self._judge,
            step=self._step, at_rung=self._at_rung, notice=self.reporter.notice,
        )  # fmt: skip
        if self.config.machines.chosen_runner == "in-process":
            return InProcessRunner(self.evaluator, listener)
        objective = self.config.objective(self.directory)
        if self.config.machines.chosen_runner == "tune":
            return _tune_runner(objective, self.evaluator, self.config.machines, listener)
        from search.runners.ray_actors import RayRunner  # importing Ray takes seconds, and a search in process needs none of it

        return RayRunner(objective, self.config.machines, listener)

    def _needs(self) -> Sequence[Need]:
        study = self.config.study
        wanted: dict[Need, bool] = {
            "latency": study.times,
            "factors": study.recipe is None,
            "profile": study.recipe is None and study.measured_profile,
        }
        return [need for need, is_wanted in wanted.items() if is_wanted]

    def _facts(self) -> dict[str, Any]:
        space, costs, study = self.evaluator.space, self.evaluator.costs, self.config.study
        names = dict.fromkeys([space.name, *(proposal.space for proposal in self.study.proposals)])
        return {
            "model": self.config.model.model,
            "classes": self.evaluator.data.num_classes,
            "fingerprint": self.evaluator.fingerprint,
            "space": space.name,
            "spaces": {name: describe_space(describe(self.evaluator.model, name, study.multiple)) for name in names},
            "skipped": [asdict(entry) for entry in space.skipped],
            "dense": {**costs.dense, "error": self.evaluator.dense.error},
            "reach": {cost: list(ends) for cost, ends in self.reach.items()},
            **({"latency": {"text": table.text, "error": table.error}} if (table := self.evaluator.latency) else {}),
        }

    def _accept(self, evaluator: Evaluator) -> None:
        """Tell what was read; refuse splits that are too small, another model's run, costs that cannot be counted and targets
        out of reach before factors are computed."""
        tell_found(evaluator.data, self.reporter.say, self.reporter.notice)
        check_same_model(self.directory, evaluator.fingerprint)
        self.reporter.say(f"weights: {weights_of(evaluator.model)}")
        check_same_latencies(self.directory, self.config, evaluator.fingerprint)
        check_count(evaluator.model, evaluator.counted)
        self._settle(evaluator, evaluator.counted)
        for name in recipes_of(self.config.study):
            for limits in recipe_limits(self.targets, evaluator.counted):
                check_reach(evaluator, name, limits)

    def _judge(self) -> None:
        """Tell what is odd about the dense model's figures, before factors are computed; once, whichever worker has them."""
        if not self._judged:
            self._judged = True
            trained = (getattr(self.evaluator.model, "pretrained_cfg", None) or {}).get("label_names") or ()
            for text in judge(self.evaluator.dense, self.evaluator.data, self.directory, trained):
                self.reporter.notice(text)

    def _settle_latency(self) -> None:
        """Settle what latencies are bounded by, now that they are known."""
        if (table := self.evaluator.latency) is None:
            return
        self._settle(self.evaluator, self.evaluator.costs)
        if table.device not in self.runner.devices:
            self.reporter.notice(f"this run keeps the latencies that it began with, of {table.device}")

    def _settle(self, evaluator: Evaluator, costs: CostModel) -> None:
        """What the targets mean in figures, as far as costs are known."""
        space = evaluator.space
        later = {"latency"} - set(costs.names) if self.config.study.times else set()
        if self.config.study.recipe in RECIPES:  # what a recipe reaches alone is not bounded by the space of searches
            space = describe(evaluator.model, recipe_of(self.config.study.recipe).space, self.config.study.multiple)
            costs = cost_model(evaluator.model, space)
        self.reach: Reach = reach_of(costs, space)
        self.targets: tuple[Budget, ...] = budgets_of(self.config.study.targets, self.reach, later)
        check_jointly(self.targets, costs, space)
        cost = MAIN.name if MAIN.name in self.config.study.minimised else self.config.study.minimised[0]
        self.limits: list[Limits] = [budget.limits for budget in self.targets] or [{cost: costs.dense.get(cost, 1.0)}]

    def run(self) -> None:
        """Propose and evaluate until the run has its number of trials, its time is up, or nothing new is left to propose."""
        wanted = len(self.study.proposals) if self.config.study.recipe else self.config.study.trials
        pace = Pace(self.directory, self.config, self.runner.devices)
        outlook = self._outlook(wanted, pace.seconds(self.study.trials))
        self.config.dump(self.directory / "config.yaml")
        self.views.write()
        pace.write(environment(self.runner.devices))
        self.reporter.began(self.directory, self.views.summary, outlook, self.config.finetune.steps)
        if outlook.left:
            opening = opening_of(self.study.proposals, wanted, len(self.limits), self.config.study.recipe is not None)
            opening.tell(self.reporter.say, self.reporter.notice)
        with Interrupts(self._interrupted) as interrupts:

            def stopping() -> bool:
                return interrupts.asked or self._late

            loop = Loop(
                self.study, self.runner, wanted, stopping,
                self._started, self._ended, self.reporter.notice, partial(self._show, self.runner.workers == 1),
            )  # fmt: skip
            try:
                loop.run()
            except BaseException:
                with suppress(OSError):  # a full disk: what ended the search says more
                    self._show_all()
                raise
            self._show_all()
            if interrupts.asked:
                raise KeyboardInterrupt
        for _, sentence in lower_edges(self.views.summary, self.config.study.band):
            self.reporter.notice(sentence)
        ended = len(self.study.trials)
        if not ended:
            raise RunError(f"no time was left for a single trial, of about {self._seconds:.1f} s: give more --max-hours")
        if not any(trial.state == "COMPLETE" for trial in self.study.trials):
            reasons = sorted({trial.reason or "" for trial in self.study.trials})
            raise RunError(f"all {ended} trials failed: {reasons[0]} (see {self.directory / 'trials'})")
        self.done = ended >= wanted or not self._late
        if not self.done:
            self.reporter.notice(f"no time is left within --max-hours after {ended} of {wanted} trials: launch again to go on")

    def close(self) -> None:
        self.running.close()
        self.runner.close()
        self.study.close()

    def _outlook(self, wanted: int, recorded: Sequence[float]) -> Outlook:
        """What is ahead, from seconds of finished trials where there are some; sets the limit beyond which a trial hangs.

        Raises:
            RunError: the disk has no room for the weights of the trials that run at once.
        """
        typical = self.evaluator.space.identity() if self.config.study.recipe else self.budgets.uniform(1.0)
        params = self.evaluator.costs.count(typical, "params")
        trial = expect(self.runner, typical, params, recorded, self.reporter.stage)
        self._seconds = trial.slowest
        self._set_limit()
        return outlook_of(self.directory, trial, wanted, len(self.study.trials), self.runner.workers)

    def _set_limit(self) -> None:
        self.runner.limit = self.config.machines.trial_timeout or max(_LEAST_LIMIT, _PATIENCE * self._seconds)

    @property
    def _late(self) -> bool:
        """Whether a trial that began now would not be done within the hours that were given."""
        hours = self.config.machines.max_hours
        return hours is not None and time.monotonic() + self._seconds > self._began + 3600 * hours

    def _interrupted(self) -> None:
        self.reporter.notice("finishing the trials that run; Ctrl-C again stops at once")

    def _started(self, proposal: Proposal) -> None:
        self.reporter.started(proposal)
        self.running.started(proposal)

    def _step(self, number: int, step: Step) -> None:
        self.reporter.step(number, step)
        self.running.step(number, step)

    def _ended(self, trial: Trial) -> None:
        self.running.ended(trial.proposal.number)
        if trial.score is not None:
            self._seconds = max(self._seconds, trial.score.seconds)
            self._set_limit()
        self.views.ended(trial)

    def _show(self, at_once: bool) -> None:
        self.running.update()
        shown = self.views.update(at_once)
        before = len(self.study.trials) - len(shown)
        for count, trial in enumerate(shown, start=before + 1):
            self.reporter.finished(trial, self.views.summary, count)

    def _show_all(self) -> None:
        self._show(at_once=True)
        self.views.write_report()

    def _at_rung(self, proposal: Proposal, step: int, error: float) -> str | None:
        """Why a candidate should be stopped at a rung, if it should."""
        assert proposal.allocation is not None
        self.running.rung(proposal.number, step, error)
        known = self.evaluator.costs.costs(proposal.allocation)
        costs = {name: cost for name, cost in known.items() if name in self.objectives}
        return reason_to_stop(proposal, self.study.trials, costs, step, self.config.finetune.steps, error)

    def _low(self, limits: Limits) -> float:
        """The lowest load that proposals aim at: a band below the target, or all that the space reaches where there is none."""
        load = partial(self.evaluator.costs.load, limits=limits)
        least = load(self.evaluator.space.smallest(load))
        return min(max(least, self.config.study.band), 1.0) if self.targets else least


def _tune_runner(objective: Objective, evaluator: Evaluator, config: MachineConfig, listener: Listener) -> Runner:
    try:
        from search.runners.tune import TuneRunner
    except ImportError as error:
        raise ConfigError(f"--runner tune: {first_line(error)}: pip install 'vit-compression-search[tune]'") from error
    return TuneRunner(objective, evaluator, config, listener)
