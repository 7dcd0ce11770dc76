"""One launch of a search: its model, runner and study are prepared, its loop runs, and observers are told of both."""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from objectives.dense_model import DenseModel, load_dense
from objectives.forecast import Forecast
from objectives.runtime.distributed import Group
from search.budgets.knapsack import knapsack_of
from search.budgets.parametrisation import Parametrisation, parametrise
from search.budgets.reach import recipe_limits
from search.config import SearchConfig
from search.driver.activity import Activity
from search.driver.baselines import enqueue_baselines
from search.driver.closing import closing
from search.driver.deadline import Deadline
from search.driver.facts import facts_of
from search.driver.feasibility import Feasible, accepted, settle
from search.driver.first_answer import first_answer
from search.driver.interrupts import Interrupts
from search.driver.loop import Loop
from search.driver.observer import Observer, Observers
from search.driver.opening import opening_of
from search.driver.outlook import Outlook, outlook_of
from search.driver.pace import Pace
from search.driver.publisher import Publisher
from search.driver.rate_probe import check_rate, settle_rate
from search.evidence.gathered import Gathered
from search.fidelity.judge import judge
from search.layout import CONFIG, JOURNAL
from search.run.continuation import identity_of
from search.run.edge import lower_edges
from search.run.provenance import environment
from search.runners.base import Listener, Runner
from search.runners.create import create_runner
from search.runners.job import Need, needs_of
from search.study.early_stopping import reason_to_stop
from search.study.ending import ending_of
from search.study.replay import journal_numbers
from search.study.study import Study
from search.trial import Proposal
from spaces.allocation import Allocation
from spaces.errors import RunError


class Session:
    """What a launch has open. Whatever can stop it is looked for before a trial is paid for.

    Args:
        config: of the search, with its output directory.
        directory: of the run, whose lock is held.
        observer: told of all that happens.
        began: when the launch did, by the monotonic clock.

    Raises:
        CompressionError: the search cannot be made; nothing stays open.
    """

    def __init__(self, config: SearchConfig, directory: Path, observer: Observer, began: float) -> None:
        self.config, self.directory, self._is_judged = config, directory, False
        check_rate(directory, config)
        self.observers = Observers([observer, Activity(directory, config.finetune.steps)])
        with ExitStack() as opened:
            opened.callback(self.observers.closed)
            self.dense = self._load()
            self.runner = self._create_runner()
            opened.callback(self.runner.close)
            # What is computed once per run is computed before the run is written: what stops here leaves no run behind.
            self.runner.prepare(self._needs())
            self._settle_latency()
            self.budgets = self.feasible.budgets(self.dense.space, self.dense.costs, config.study.band)
            self.objectives = ("error", *config.study.minimised)  # the sampler learns from the first one
            self.study = self._open_study()
            opened.callback(self.study.close)
            self._enqueue()
            self._first_answer()
            settle_rate(config, directory, self.dense, self.study.parametrisation, self.runner, self.observers)
            self.study.end(ending_of(replace(config, finetune=self.dense.objective.finetune), self.budgets.targets))
            self.deadline = Deadline(self.runner, config.machines, began)
            self.publisher = self._create_publisher()
            self.observers.add(self.deadline)
            self.observers.add(self.publisher)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Stop what runs, and give back what is open."""
        self._opened.close()

    def run(self) -> bool:
        """Propose and evaluate until the run has its number of trials, its time is up, or nothing new is left to propose.

        Returns:
            Whether the search is done: False where time is up.

        Raises:
            RunError: every trial failed, three in a row failed for the same cause, or there is no time or no disk for one.
            KeyboardInterrupt: after Ctrl-C.
        """
        wanted = len(self.study.proposals) if self.config.study.recipe else self.config.study.trials
        self._begin(wanted)
        self._loop(wanted)
        for _, sentence in lower_edges(self.publisher.summary, self.config.study.band):
            self.observers.notice(sentence)
        for sentence in closing(self.study, self.publisher.summary):
            self.observers.say(sentence)
        return self._is_done(wanted)

    def _load(self) -> DenseModel:
        """The dense model of this process: on the CPU where trials run elsewhere."""
        objective = self.config.objective(self.directory)
        if self.config.machines.chosen_runner != "in-process":
            objective = replace(objective, device="cpu")
        Group(size=self.config.machines.gpus_per_trial).divide(self.config.data.batch_size)
        return load_dense(objective, self.observers.stage, self._accept)

    def _accept(self, dense: DenseModel) -> None:
        self.feasible: Feasible = accepted(self.config, self.directory, dense, self.observers)

    def _create_runner(self) -> Runner:
        listener = Listener(
            stage=self.observers.stage, measured=self._judge,
            step=self.observers.step, at_rung=self._at_rung, notice=self.observers.notice,
        )  # fmt: skip
        return create_runner(self.config.machines, self.config.objective(self.directory), self.dense, listener)

    def _needs(self) -> Sequence[Need]:
        study = self.config.study
        is_done = (study.recipe, study.storage) == (None, None) and self._finished() >= study.trials
        return needs_of(
            latency=study.times, factors=study.recipe is None, profile=study.recipe is None and study.measured_profile,
            frames=study.recipe is None, batches=not is_done,
        )  # fmt: skip

    def _finished(self) -> int:
        """Trials in the journal, before the study is opened."""
        return len(journal_numbers(self.directory / JOURNAL))

    def _judge(self) -> None:
        """Tell what is odd about the dense model's figures, before factors are computed; once, whichever worker has them."""
        if not self._is_judged:
            self._is_judged = True
            trained = (getattr(self.dense.model, "pretrained_cfg", None) or {}).get("label_names") or ()
            for text in judge(self.dense.figures, self.dense.data, self.directory, trained):
                self.observers.notice(text)

    def _at_rung(self, proposal: Proposal, step: int, error: float) -> str | None:
        """Why a candidate should be stopped at a rung, if it should."""
        assert proposal.allocation is not None
        self.observers.rung(proposal.number, step, error)
        known = self.dense.costs.costs(proposal.allocation)
        costs = {name: cost for name, cost in known.items() if name in self.objectives}
        return reason_to_stop(proposal, self.study.trials, costs, step, self._steps, error)

    def _settle_latency(self) -> None:
        """Settle what latencies are bounded by, now that they are known."""
        if (table := self.dense.latency) is None:
            return
        self.feasible = settle(self.config.study, self.dense, self.dense.costs)
        if table.device not in self.runner.devices:
            self.observers.notice(f"this run keeps the latencies that it began with, of {table.device}")

    def _open_study(self) -> Study:
        study = self.config.study
        identity = identity_of(self.config, self.dense.fingerprint) if study.storage else None
        screening = study.screening and self.config.data.profile_images > 0
        return Study(
            self.directory, self._parametrisation(), self.objectives, study.sampler, study.seed, screening,
            study.storage, identity, self._gathered(),
        )  # fmt: skip

    def _gathered(self) -> Gathered:
        """What trials make of single images, beside what the dense model makes of them."""
        return Gathered(self.directory, self.dense.outcomes, self.dense.data.size("test") or 0)

    def _parametrisation(self) -> Parametrisation:
        study = self.config.study
        knapsack = knapsack_of(self.dense, study.measured_profile) if study.recipe is None else None
        return parametrise(study.parametrisation, self.budgets, knapsack)

    def _enqueue(self) -> None:
        self.study.check_nothing_lost()
        limits = recipe_limits(self.feasible.targets, self.dense.costs)
        enqueue_baselines(self.study, self.study.parametrisation, self.config.study, limits)

    @property
    def _steps(self) -> int:
        """Of every trial's fine-tune."""
        return self.dense.objective.finetune.steps

    def _create_publisher(self) -> Publisher:
        spaces = [proposal.space for proposal in self.study.proposals]
        facts = facts_of(self.config, self.dense, self.feasible.reach, self.feasible.targets, self.objectives, spaces)
        return Publisher(self.study, facts, self.config.machines.disk_limit, self.observers, self.runner.workers == 1)

    def _first_answer(self) -> None:
        """Tell what budgets cost as built, where candidates are chosen by a profile and there are images to measure them on."""
        if self.config.study.recipe is None and self.dense.profile_images:
            self.observers.answered(
                first_answer(self.directory, self.config.study, self.dense, self.feasible, self.runner, self.observers.stage)
            )

    def _begin(self, wanted: int) -> None:
        """Write the run down, and tell what is ahead."""
        pace = Pace(self.directory, self.config, self.runner.devices)
        outlook = self._outlook(wanted, pace)
        self.config.dump(self.directory / CONFIG)
        self.publisher.write()
        pace.write(environment(self.runner.devices))
        self.observers.began(self.directory, self.publisher.summary, outlook, self._steps)
        if outlook.left:
            is_recipe = self.config.study.recipe is not None
            opening = opening_of(self.study.proposals, wanted, len(self.feasible.limits), is_recipe, self.study.confirming)
            opening.tell(self.observers.say, self.observers.notice)

    def _outlook(self, wanted: int, pace: Pace) -> Outlook:
        """What is ahead, from seconds of finished trials where there are some."""
        typical = self.dense.space.identity() if self.config.study.recipe else self.budgets.uniform(1.0)
        params = int(self.dense.costs.count(typical, "params"))
        trial = pace.expect(self.study.trials, wanted, params, partial(self._time, typical))
        self.deadline.expect(trial.slowest)
        needed = self.dense.batches.needed(Group(size=self.config.machines.gpus_per_trial))
        return outlook_of(self.directory, trial, wanted, len(self.study.trials), self.runner.workers, needed)

    def _time(self, typical: Allocation) -> Forecast:
        """What a trial of an allocation takes, by a few steps of it."""
        self.observers.stage("forecast", 0, 1)
        timed = self.runner.forecast(typical)
        self.observers.stage("forecast", 1, 1)
        return timed

    def _loop(self, wanted: int) -> None:
        with Interrupts(self._interrupted) as interrupts:

            def stopping() -> bool:
                return interrupts.asked or self.deadline.is_late

            try:
                Loop(self.study, self.runner, wanted, stopping, self.observers).run()
            except BaseException:
                with suppress(OSError):  # a full disk: what ended the search says more
                    self.publisher.finish()
                raise
            self.publisher.finish()
            if interrupts.asked:
                raise KeyboardInterrupt

    def _interrupted(self) -> None:
        self.observers.notice("finishing the trials that run; Ctrl-C again stops at once")

    def _is_done(self, wanted: int) -> bool:
        ended = len(self.study.trials)
        if not ended:
            raise RunError(
                f"no time was left for a single trial, of about {self.deadline.seconds:.1f} s: give more --max-hours"
            )
        if not any(trial.state == "COMPLETE" for trial in self.study.trials):
            reasons = sorted({trial.reason or "" for trial in self.study.trials})
            raise RunError(f"all {ended} trials failed: {reasons[0]} (see {self.directory / 'trials'})")
        is_done = ended >= self.study.wanted(wanted) or not self.deadline.is_late
        if not is_done:
            self.observers.notice(f"no time is left within --max-hours after {ended} of {wanted} trials: launch again to go on")
        return is_done
