"""The learning rate is probed once a run: which rates, which is chosen, and who uses it."""

import json
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from local_digits import DATA, MODEL, evaluator_of
from local_launches import Silent, config_of
from local_searches import costs_of, searched, space_of

from objectives.dense_model import load_dense
from objectives.evaluator import Evaluator
from objectives.forecast import Forecast
from objectives.objective import Objective
from objectives.training.config import UNPROBED, FinetuneConfig
from objectives.training.rate import RATE, Rate, RateProbe, settled
from search import audit, launch, open_run
from search.driver import rate_probe
from search.driver.preview import preview
from search.driver.rate_probe import RATES, best_rate, settle_rate
from search.layout import METRICS
from search.runners.job import Need, wait_for_rate
from search.trial import Ended, Job, Outcome, Probe, Probed
from spaces.allocation import Allocation
from spaces.errors import RunError
from spaces.models.create import create_model

BUILT, NAN = (1.0, 4.0), math.nan


@pytest.mark.parametrize(
    ("found", "best"),
    [
        ({1e-5: (0.9, 3.6), 1e-4: (0.8, 3.2), 1e-3: (0.85, 3.4)}, 1e-4),
        ({1e-5: (0.9, 3.6), 1e-3: (0.25, 9.0)}, 1e-3),  # counts as (0.25, 4): half as much on average, the other 0.9 times
        ({1e-3: (0.5, 4.0), 1e-4: (1.0, 2.0)}, 1e-4),  # the same on average: the smaller rate
        ({1e-5: (1.0, 4.1), 1e-4: (2.0, 5.0)}, None),
        ({1e-5: (0.995, 3.98)}, None),  # half a percent is not worth a fine-tune
        ({1e-5: (0.98, 3.92), 1e-4: (0.1, NAN)}, 1e-5),  # a rate at which one diverges
        ({1e-5: (NAN, NAN)}, None),
        ({1e-5: (0.0, 3.0)}, 1e-5),
    ],
)
def test_the_rate_of_least_divergence_is_chosen(found: dict[float, tuple[float, float]], best: float | None) -> None:
    assert best_rate(BUILT, found) == best


class Answers:
    """A runner of two workers whose probes come to what a formula says of a rate; None loses the worker every time."""

    def __init__(self, kl: Callable[[float], float | None], built: float | None = 1.0) -> None:
        self._kl, self._built = kl, built
        self._jobs, self.seen, self.limit = list[Probe](), list[Probe](), None
        self.workers, self.devices = 2, ["here"]

    @property
    def free(self) -> int:
        return self.workers - len(self._jobs)

    def prepare(self, needs: Sequence[Need]) -> None: ...

    def close(self) -> None: ...

    def forecast(self, allocation: Allocation) -> Forecast:
        raise NotImplementedError

    def submit(self, job: Job, folder: Path) -> None:
        assert self.free and isinstance(job, Probe) and job.number < 0
        self._jobs.append(job)

    def wait(self, timeout: float = 1.0) -> Ended | None:
        job = self._jobs.pop()
        self.seen.append(job)
        kl = self._kl(job.lr) if job.steps else self._built
        if kl is None:
            return Outcome(number=job.number, score=None, reason="lost", lost=True)
        return Probed(number=job.number, kl=kl)

    @property
    def rates(self) -> list[float]:
        return sorted({job.lr for job in self.seen if job.steps})


class Dense:
    """Of a made-up space: its costs are all that a probe asks for."""

    costs = costs_of(space_of())


def settle(runner: Answers, folder: Path, **options: Any) -> tuple[Rate, list[str], list[tuple[int, int]]]:
    """What the run keeps, what was said, and how far it said to be."""
    config, observer = config_of(folder, steps=100, lr=None, **options), Silent()
    parametrisation = searched(space_of(), [{"macs": 2000}], [0.5])
    settle_rate(config, folder, Dense(), parametrisation, runner, observer)  # type: ignore[arg-type]
    rate = Rate.load(folder)
    assert rate is not None
    return rate, observer.said, observer.stages.get("learning rate", [])


def bowl(lowest: float) -> Callable[[float], float]:
    """Divergence after a fine-tune: half of that as built at this rate, and 0.2 more for every factor of ten away from it."""
    return lambda lr: 0.5 + 0.2 * abs(math.log10(lr / lowest))


@pytest.mark.parametrize(
    ("lowest", "probed"),
    [
        (1e-4, RATES[2:7]), (3e-4, RATES[2:7]), (1e-3, [1e-5, 1e-4, 3e-4, 1e-3]), (3e-6, RATES[0:4] + RATES[4::2]),
        (1e-6, [*RATES[:4], 1e-4, 1e-3]),
    ],
)  # fmt: skip
def test_neighbours_of_the_best_rate_are_probed_until_they_are_known(
    tmp_path: Path, lowest: float, probed: Sequence[float]
) -> None:
    runner = Answers(bowl(lowest))
    rate, said, stages = settle(runner, tmp_path)
    assert (rate.lr, rate.steps) == (lowest, 100)
    assert runner.rates == list(probed)
    assert {job.steps for job in runner.seen} == {0, 25}
    count = 2 * (1 + len(probed))
    assert len(runner.seen) == len(rate.probes) == count
    assert (stages[0], stages[-1]) == ((0, 12), (count, count))
    assert said == [
        f"learning rate: {lowest:.0e}, of {len(probed)} that were probed: "
        f"KL 1 -> 0.5 at {rate.probes[0].macs:.1%}, 1 -> 0.5 at {rate.probes[1].macs:.1%} of MACs"
    ]


def test_candidates_are_in_the_middle_of_the_band_and_at_its_lower_end(tmp_path: Path) -> None:
    """Of half of the MACs, down to half of that: on three quarters of it or little below, and on its half."""
    rate, _, _ = settle(Answers(bowl(1e-4)), tmp_path)
    shares = sorted({probe.macs for probe in rate.probes})
    assert shares == pytest.approx([0.25, 0.375], abs=0.04)


def test_where_none_helps_trials_take_no_steps(tmp_path: Path) -> None:
    runner = Answers(lambda lr: 1.0 + lr)
    rate, said, _ = settle(runner, tmp_path)
    assert (rate.lr, rate.steps) == (None, 0)
    assert runner.rates == [*RATES[:4], 1e-4, 1e-3], "all smaller ones"
    assert said[0].startswith("learning rate: none of 6 helps (KL as built 1 at ")
    assert settled(FinetuneConfig(steps=100), tmp_path) == FinetuneConfig(steps=0)


def test_a_rate_that_ends_its_workers_is_out_of_the_question(tmp_path: Path) -> None:
    """Tried three times; the probe is kept without a figure."""
    runner = Answers(lambda lr: None if lr == 1e-4 else bowl(1e-4)(lr))
    rate, _, _ = settle(runner, tmp_path)
    assert rate.lr == 3e-5 or rate.lr == 3e-4
    assert [job.lr for job in runner.seen].count(1e-4) == 6
    assert [probe.kl for probe in rate.probes if probe.lr == 1e-4] == [None, None]


def test_no_figure_as_built_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="could not be probed: a candidate as built gave no figure; --lr needs no probe"):
        settle(Answers(bowl(1e-4), built=None), tmp_path)
    assert not (tmp_path / RATE).exists(), "it is probed again"


def test_a_recipe_alone_has_the_default(tmp_path: Path) -> None:
    runner = Answers(bowl(1e-4))
    rate, said, _ = settle(runner, tmp_path, recipe="vtp")
    assert rate == Rate(lr=UNPROBED, steps=100)
    assert not runner.seen
    assert "a recipe alone has no candidates to probe it on" in said[0]


RATE_OF_TWO = Rate(
    lr=3e-4,
    steps=9,
    probes=(RateProbe(macs=0.5, lr=None, steps=0, kl=0.2), RateProbe(macs=0.5, lr=3e-4, steps=2, kl=None)),
)


def test_the_file_comes_back_or_is_refused(tmp_path: Path) -> None:
    assert Rate.load(tmp_path) is None
    RATE_OF_TWO.save(tmp_path)
    assert Rate.load(tmp_path) == RATE_OF_TWO
    for damage in ("{", "[]", '{"lr": -1, "steps": 3, "probes": []}', '{"lr": 1e-4, "steps": 3, "probes": [{}]}'):
        (tmp_path / RATE).write_text(damage)
        with pytest.raises(RunError, match=f"{RATE} cannot be read .*: restore it, or choose another --output"):
            Rate.load(tmp_path)


def test_a_given_rate_or_no_steps_need_none(tmp_path: Path) -> None:
    RATE_OF_TWO.save(tmp_path)
    for config in (FinetuneConfig(lr=1e-3), FinetuneConfig(steps=0)):
        assert settled(config, tmp_path) is config
    assert settled(FinetuneConfig(steps=90), tmp_path) == FinetuneConfig(steps=90, lr=3e-4)
    assert (FinetuneConfig(lr=1e-3).rate, FinetuneConfig().rate) == (1e-3, UNPROBED)


@pytest.fixture(scope="module")
def objective(tmp_path_factory: pytest.TempPathFactory) -> Objective:
    torch.manual_seed(0)
    data, folder = replace(DATA, calibration_size=64, profile_images=64), tmp_path_factory.mktemp("runs")
    return evaluator_of(create_model(MODEL), folder, data=data, finetune=FinetuneConfig(steps=4)).dense.objective


def test_a_model_that_was_loaded_before_has_it_too(objective: Objective) -> None:
    """As workers are: they get their objective before it is probed."""
    dense, run = load_dense(objective), objective.factors.parent
    try:
        assert dense.objective.finetune.lr is None
        Rate(lr=3e-4, steps=4).save(run)
        assert dense.objective == replace(objective, finetune=FinetuneConfig(steps=4, lr=3e-4))
        Rate(lr=None, steps=0).save(run)
        built = load_dense(objective).objective
        assert (built.finetune.steps, built.split_before) == (0, "search")
    finally:
        (run / RATE).unlink()


def test_a_trial_waits_for_the_rate_of_its_run(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network disk may show it late; without it no trial is begun."""
    dense, run = load_dense(objective), objective.factors.parent
    monkeypatch.setattr("search.runners.job.RATE_SECONDS", 0.0)
    with pytest.raises(RunError, match=f"{run / RATE} is not to be seen from .*: choose an --output that all nodes share"):
        wait_for_rate(dense)
    monkeypatch.setattr("search.runners.job.RATE_SECONDS", 60.0)
    writes = threading.Timer(0.2, lambda: Rate(lr=3e-4, steps=4).save(run))
    writes.start()
    wait_for_rate(dense)
    assert dense.objective.finetune.lr == 3e-4
    (run / RATE).unlink()


def test_a_probe_is_a_fine_tune_of_its_own(objective: Objective) -> None:
    """Of no steps it is the candidate as built; the same again; NaN where it diverges."""
    evaluator = Evaluator(load_dense(objective))
    allocation = evaluator.dense.space.smallest(lambda allocation: evaluator.dense.costs.load(allocation, {"macs": 1}))
    built = evaluator.measures.rung_images(evaluator.build(allocation)).kl
    assert evaluator.probe(allocation, UNPROBED, steps=0) == built
    first, again, other = (evaluator.probe(allocation, lr, steps=2) for lr in (1e-3, 1e-3, 1e-2))
    assert first == again != other and first != built
    assert math.isnan(evaluator.probe(allocation, 1e30, steps=3))


def searching(folder: Path, **options: Any) -> Any:
    return config_of(folder, **{"lr": None, "steps": 4, "trials": 3, **options})


def test_a_search_probes_before_its_first_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trials use the rate, also those of a later launch, which probes nothing; without the file it is refused."""
    monkeypatch.setattr(rate_probe, "_WORTH", -1.0)  # of an untrained model no fine-tune need help
    observer, run = Silent(), tmp_path / "run"
    preview(searching(tmp_path), Silent())  # writes a run without trials, and so without a rate
    found = launch(searching(tmp_path), observer)
    rate = Rate.load(run)
    assert rate is not None and rate.lr in RATES and found.finetune == FinetuneConfig(steps=4, lr=rate.lr)
    assert [text for text in observer.said if text.startswith(f"learning rate: {rate.lr:.0e}, of ")]
    assert observer.stages["learning rate"][-1] == (len(rate.probes), len(rate.probes))
    assert observer.told.index("learning rate") < observer.told.index("forecast")
    assert not (run / "probes").exists(), "no worker was lost"
    again, written = Silent(), (run / RATE).read_bytes()
    launch(searching(tmp_path, trials=4), again)
    assert "learning rate" not in again.stages
    assert f"learning rate: {rate.lr:.0e}, as this run began with" in again.said
    assert (run / RATE).read_bytes() == written
    for number in (2, 3):
        steps = [json.loads(line) for line in (run / "trials" / f"{number:04d}" / METRICS).read_text().splitlines()[:4]]
        assert max(step["lr"] for step in steps) == pytest.approx(rate.lr, rel=0.5)
    assert open_run(run).config.finetune.lr is None
    (run / RATE).unlink()
    with pytest.raises(RunError, match="the learning rate of the run, is missing: restore it from a backup"):
        _ = open_run(run).finetune
    with pytest.raises(RunError, match=f"{RATE} is missing: restore it, or choose another --output"):
        launch(searching(tmp_path, trials=5), Silent())


def test_trials_of_no_steps_are_measured_as_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the search split, once; nothing is confirmed with other seeds, and there is no short fine-tune to audit."""
    monkeypatch.setattr(rate_probe, "_WORTH", math.inf)
    observer = Silent(stop_at=3)
    with pytest.raises(KeyboardInterrupt):
        launch(searching(tmp_path, trials=12), observer)
    found = open_run(tmp_path / "run")
    assert [text for text in observer.said if text.startswith("learning rate: none of 6 helps (KL as built ")]
    assert (found.finetune.steps, found.summary.split_before, observer.steps) == (0, "search", 0)
    assert found.trials[["steps", "kept_step"]].to_numpy().tolist() == [[0, 0]] * 3
    assert not [text for text in observer.said if "to confirm" in text]
    with pytest.raises(RunError, match="measured as built: there is no short fine-tune to audit"):
        audit(found)


def test_an_interrupted_probe_is_repeated_and_a_given_rate_is_not_probed(tmp_path: Path) -> None:
    """What lies in a directory without a trial is of nothing that was begun."""
    run = tmp_path / "run"
    run.mkdir()
    (run / RATE).write_text("damaged")
    observer = Silent()
    launch(searching(tmp_path, lr=1e-3), observer)
    assert not (run / RATE).exists()
    assert "learning rate" not in observer.stages
