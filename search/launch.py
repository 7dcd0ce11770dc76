"""The search itself: prepare the run, ask, run, tell, and keep the tables and the front's weights up to date."""

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from objectives.cost import Cost, cost_model
from objectives.count import fvcore_macs
from objectives.finetune import Step
from objectives.objective import Evaluator
from objectives.recipes import RECIPES, check_reach, recipe_of
from objectives.sensitivity import Errors, closed_form
from search.audit import audit
from search.config import ALLOCATED, SearchConfig
from search.environment import environment
from search.knapsack import Knapsack
from search.parametrisation import Budgets, Limits, parametrise
from search.report import render
from search.run import Run, check_same_model, check_same_run, default_output, make_directory
from search.rungs import reason_to_stop
from search.runner import WEIGHTS, InProcessRunner
from search.study import Study
from search.table import DENSE, describe_space, sites_of, summarise, trial_table, write_tables
from search.targets import Reach, Target, budgets_of, check_jointly, parse_targets, reach_of, recipe_budgets
from search.trial import Proposal, Screening, Trial
from spaces.errors import AllocationError, CountError, RunError
from spaces.files import write_json
from spaces.sites import Space
from spaces.vit import describe

_COLUMNS = {"error": "error", "flops": "macs", "params": "params"}
_REPORT_SECONDS = 20.0


class Reporter(Protocol):
    """Whoever watches a search."""

    def stage(self, what: str, done: int, total: int) -> None: ...

    def began(self, directory: Path, summary: dict[str, Any], trials: int, steps: int) -> None: ...

    def started(self, proposal: Proposal) -> None: ...

    def step(self, number: int, step: Step) -> None: ...

    def finished(self, trial: Trial, summary: dict[str, Any], count: int) -> None: ...


def launch(config: SearchConfig, reporter: Reporter) -> Run:
    """Start the search in `config.study.output`, or continue the one that is there.

    Raises:
        CompressionError: anything that the user can put right, before a trial is paid for.
        RunError: every trial failed, or too few finished for the audit that was asked for.
    """
    directory = Path(config.study.output or default_output(config))
    check_same_run(directory, config)
    if config.study.threads is not None:
        torch.set_num_threads(config.study.threads)
    config = replace(config, study=replace(config.study, output=str(directory)))
    make_directory(directory)
    try:
        search = _Search(config, directory, reporter)
    except BaseException:
        with suppress(OSError):  # not empty: it was there before, or holds factors that another try can use
            directory.rmdir()
        raise
    try:
        search.run()
    finally:
        search.close()
    run = Run(directory)
    if config.study.audit:
        audit(run, config.study.audit, progress=reporter.stage)
    return run


class _Search:
    """One launch: what `launch` prepared, and the loop."""

    def __init__(self, config: SearchConfig, directory: Path, reporter: Reporter) -> None:
        self.config, self.directory, self.reporter = config, directory, reporter
        study = config.study
        self.evaluator = Evaluator(config.objective(directory), reporter.stage, self._accept)
        space, costs = self.evaluator.space, self.evaluator.costs
        dense = self.evaluator.dense
        # Factors are computed before the run is written: what stops here leaves no run behind.
        knapsack = Knapsack(space, costs, self._errors()) if study.recipe is None else None
        self.budgets = Budgets(space, costs, self.limits, [self._low(limits) for limits in self.limits])
        self.parametrisation = parametrise(study.parametrisation, self.budgets, knapsack)
        # The sampler learns from the first one, in whatever order they were given.
        self.objectives = tuple(_COLUMNS[name] for name in sorted(study.objectives, key=lambda name: name != "error"))
        self.facts: dict[str, Any] = {
            "model": config.model.model,
            "classes": self.evaluator.data.num_classes,
            "fingerprint": self.evaluator.fingerprint,
            "space": space.name,
            "spaces": {},
            "skipped": [asdict(entry) for entry in space.skipped],
            "dense": {"macs": costs.dense["macs"], "params": costs.dense["params"], "error": dense.error},
            "reach": {cost: list(ends) for cost, ends in self.reach.items()},
        }
        self._reported = 0.0
        screening = study.screening and config.data.profile_images > 0
        self.study = Study(directory, self.parametrisation, self.objectives, study.sampler, study.seed, screening)
        self._enqueue_baselines()
        names = dict.fromkeys([space.name, *(proposal.space for proposal in self.study.proposals)])
        self.facts["spaces"] = {name: describe_space(describe(self.evaluator.model, name, study.multiple)) for name in names}
        self.sites = sites_of(self.facts)

    def _accept(self, evaluator: Evaluator) -> None:
        """Refuse another model's run, costs that cannot be counted and targets out of reach before factors are computed."""
        check_same_model(self.directory, evaluator.fingerprint)
        _check_count(evaluator)
        space, costs = evaluator.space, evaluator.costs
        if self.config.study.recipe in RECIPES:  # what a recipe reaches alone is not bounded by the space of searches
            space = describe(evaluator.model, recipe_of(self.config.study.recipe).space, self.config.study.multiple)
            costs = cost_model(evaluator.model, space)
        self.reach: Reach = reach_of(costs, space)
        self.targets: tuple[Target, ...] = parse_targets(self.config.study.target, self.reach)
        check_jointly(self.targets, costs, space)
        self.limits: list[dict[Cost, float]] = budgets_of(self.targets) or [{"macs": costs.dense["macs"]}]
        for name in self._recipes():
            for limits in recipe_budgets(self.targets, evaluator.costs):
                check_reach(evaluator, name, limits)

    def run(self) -> None:
        """Propose and evaluate until the run has its number of trials or nothing new is left to propose."""
        wanted = len(self.study.proposals) if self.config.study.recipe else self.config.study.trials
        self.config.dump(self.directory / "config.yaml")
        write_json(self.directory / "env.json", environment(self.evaluator.device))
        self.summary = self._write()
        self.reporter.began(self.directory, self.summary, wanted, self.config.finetune.steps)
        runner = InProcessRunner(self.evaluator, self.reporter.step, self._at_rung)
        running, exhausted = 0, False
        while True:
            while not exhausted and running < runner.capacity and len(self.study.trials) + running < wanted:
                proposal = self._proposal()
                exhausted = proposal is None
                if proposal is not None:
                    self.reporter.started(proposal)
                    runner.submit(proposal, self.study.folder(proposal.number))
                    running += 1
            if running == 0:
                break
            outcome = runner.wait()
            running -= 1
            trial = self.study.tell(outcome.number, outcome.score, outcome.reason, outcome.allocation)
            self.summary = self._write()
            self._keep_front_weights()
            self.reporter.finished(trial, self.summary, len(self.study.trials))
        self._write_report()
        if not any(trial.state == "COMPLETE" for trial in self.study.trials):
            reasons = sorted({trial.reason or "" for trial in self.study.trials})
            raise RunError(f"all {len(self.study.trials)} trials failed: {reasons[0]} (see {self.directory / 'trials'})")

    def close(self) -> None:
        self.study.close()

    def _proposal(self) -> Proposal | None:
        """The next trial, once its candidates are screened."""
        found = self.study.ask()
        while isinstance(found, Screening):
            found = self.study.choose(found.number, [self.evaluator.divergence(entry) for entry in found.candidates])
        return found

    def _at_rung(self, proposal: Proposal, step: int, error: float) -> str | None:
        """Why a candidate should be stopped at a rung, if it should."""
        assert proposal.allocation is not None
        known = self.evaluator.costs.costs(proposal.allocation)
        costs = {name: cost for name, cost in known.items() if name in self.objectives}
        return reason_to_stop(proposal, self.study.trials, costs, step, self.config.finetune.steps, error)

    def _errors(self) -> Errors:
        """What the knapsack adds up."""
        return self.evaluator.profile.errors if self.config.study.measured_profile else closed_form(self.evaluator.factors)

    def _low(self, limits: Limits) -> float:
        """The lowest load that proposals aim at: a band below the target, or all that the space reaches where there is none."""
        load = partial(self.evaluator.costs.load, limits=limits)
        least = load(self.evaluator.space.smallest(load))
        return min(max(least, self.config.study.band), 1.0) if self.targets else least

    def _enqueue_baselines(self) -> None:
        """The dense model given the same fine-tune, and the recipes that were asked for."""
        self.study.enqueue(DENSE, self.budgets.space.identity())
        names = self.config.study.recipes
        for target in range(len(self.limits)):
            if self.config.study.recipe is None:
                self._enqueue_start(target)
            if "uniform" in names:
                self._enqueue_uniform(target)
            if "random" in names:
                self.study.enqueue("random", self.budgets.random(self._full(target), self.config.study.seed, target))
        for name in self._recipes():
            for limits in recipe_budgets(self.targets, self.evaluator.costs):
                self.study.enqueue_recipe(name, limits)

    def _enqueue_start(self, target: int) -> None:
        """What the profile alone chooses, on the budget and below it: where the sampler starts."""
        low = self.budgets.lows[target]
        for share in (1.0, 0.5, 0.0):
            parameters = self.parametrisation.encode(target, low + share * (1 - low))
            self.study.enqueue("warm start", self.parametrisation.decode(parameters), parameters)

    def _enqueue_uniform(self, target: int) -> None:
        """The same share everywhere: with every mix of operators on the budget, and in a search below it too."""
        low, mixes = self.budgets.lows[target], _mixes(self.budgets.space)
        wanted = [(f"uniform{mix}", self._full(target), operators) for mix, operators in mixes]
        for share in (0.5, 0.0) if self.config.study.recipe is None else ():
            wanted.append(("uniform", low + share * (1 - low), {}))
        for label, load, operators in wanted:
            with suppress(AllocationError):  # the smallest of one mix may be above a budget that others keep
                self.study.enqueue(label, self.budgets.uniform(load, target, operators))

    def _full(self, target: int) -> float:
        """The load that baselines aim at: all of the budget, or the middle of the band where there is no target."""
        return 1.0 if self.targets else (self.budgets.lows[target] + 1) / 2

    def _recipes(self) -> list[str]:
        """Recipes that make models of their own; the others are points of the searched space."""
        return [name for name in self.config.study.recipes if name not in ALLOCATED]

    def _write(self) -> dict[str, Any]:
        trials = trial_table(self.study.trials, self.evaluator.costs.dense, self.sites)  # type: ignore[arg-type]
        summary = summarise(trials, self.objectives, self.targets, self.facts)
        write_tables(self.directory, trials, summary)
        if time.monotonic() - self._reported > _REPORT_SECONDS:
            self._write_report()
        return summary

    def _write_report(self) -> None:
        render(Run(self.directory))
        self._reported = time.monotonic()

    def _keep_front_weights(self) -> None:
        """Move the weights of trials on the front (and of the dense reference) to front/; drop all others."""
        kept = {row["number"] for row in self.summary["front"]}
        kept |= {trial.proposal.number for trial in self.study.trials if trial.proposal.label == DENSE}
        for trial in self.study.trials:
            number = trial.proposal.number
            fresh, stored = self.study.folder(number) / WEIGHTS, self.directory / "front" / f"{number:04d}.safetensors"
            if number in kept and fresh.exists():
                stored.parent.mkdir(exist_ok=True)
                fresh.replace(stored)
            elif number not in kept:
                fresh.unlink(missing_ok=True)
                stored.unlink(missing_ok=True)


def _check_count(evaluator: Evaluator) -> None:
    """The closed form must agree with an independent counter on the dense model, or no budget means anything."""
    counted = fvcore_macs(evaluator.model, tuple(evaluator.preprocessing["input_size"]))
    expected = evaluator.costs.dense["macs"]
    if counted != expected:
        raise CountError(
            f"the closed form gives {expected:,} MACs for {type(evaluator.model).__name__}, fvcore counts {counted:,}: "
            "a layer of this model is not known here"
        )


def _mixes(space: Space) -> Iterable[tuple[str, dict[str, str]]]:
    """Ways to use one operator per kind of branch: suffix of the label, and branch -> operator."""
    attention = _rivals(space, "attn")
    ffn = _rivals(space, "mlp")
    for first in attention:
        for second in ffn:
            chosen = {
                branch: (first if branch.endswith("attn") else second)
                for branch, rivals in space.branches.items()
                if (first if branch.endswith("attn") else second) in {operator.name for operator in rivals}
            }
            yield (f" {first}+{second}" if len(attention) * len(ffn) > 1 else ""), chosen


def _rivals(space: Space, part: str) -> list[str]:
    names = [operator.name for branch, rivals in space.branches.items() if branch.endswith(part) for operator in rivals]
    return list(dict.fromkeys(names)) or [""]
