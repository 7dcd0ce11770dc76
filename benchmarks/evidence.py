"""Which figure of a trial tells its test error best, and what a pick by it loses to the best trial in hindsight.

    python benchmarks/fashion_mnist.py
    python benchmarks/evidence.py collect digits --seeds 0 1 2 3 4 5 6 7 8 9
    python benchmarks/evidence.py collect fmnist --seeds 0 1 2 3 4 5 6 7 8 9
    python benchmarks/evidence.py collect probed --seeds 0 1 2           # the same, the learning rate probed
    python benchmarks/solar_cells.py
    python benchmarks/evidence.py collect solar --seeds 0 --trials 9
    python benchmarks/evidence.py report

Every trial of every search is measured on the test split too, from its weights and as built; the search does not know of it.
The gap of a pick is its test error minus the least test error of all trials under the budget: of the whole target, and of 80
and 60 % of it. What fewer search images would have told is seen by taking some of them, drawn anew in every repetition.

The best in hindsight has the luck of the test split, so no pick has a gap of nothing. What even a pick by the true errors would
lose is simulated: these are taken to be the expected errors by the images of both splits, and the luck of the test split has
the covariance that is measured on it.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import fashion_mnist
import numpy as np
import solar_cells
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau
from torch import nn

from objectives.dense_model import load_dense
from objectives.error import compare, evaluate, predict
from objectives.evaluator import Evaluator
from objectives.outcomes import Outcomes, joined
from search import SearchConfig, launch, open_run
from search.driver.demo import with_dense_model
from search.driver.demo_options import OPTIONS as DIGITS
from search.driver.observer import Observer
from search.evidence.intervals import WIDTH, difference_interval
from search.evidence.posterior import Evidence, evidence_of
from search.evidence.sample import DENSE, Sample, shrunk_covariance
from search.layout import WEIGHTS, outcomes_of
from search.run.finished_trial import FinishedTrial
from search.run.weights import read_weights
from search.trial import WARM_START, Trial

RUNS = Path("runs/evidence")
SHARES = (1.0, 0.8, 0.6)  # of the target
_FASHION = {**fashion_mnist.OPTIONS, "checkpoint": "data/fmnist_vit.safetensors", "target": ("flops=10%",), "steps": 60}
_PROBLEMS = {
    "digits": {**DIGITS, "target": ("flops=25%",), "band": 0.4},
    "fmnist": _FASHION,
    "probed": {**_FASHION, "lr": None},
    "solar": {**solar_cells.OPTIONS, "target": ("flops=50%",), "batch_size": 32, "steps": 30},
}


class Tested(Observer):
    """Measures every trial on the test split as soon as it ends, while its weights are there."""

    def __init__(self, config: SearchConfig, directory: Path) -> None:
        self._dense = load_dense(config.objective(directory))
        self._evaluator, self._folder = Evaluator(self._dense), directory / "test"
        self._images = list(self._dense.data.evaluation("test"))
        self._answers = predict(self._dense.teacher, self._images)
        self._directory = directory
        self._keep(self._dense.teacher, "dense")

    def ended(self, trial: Trial) -> None:
        number, allocation = trial.proposal.number, trial.proposal.allocation
        if trial.state != "COMPLETE" or allocation is None or trial.proposal.recipe is not None:
            return
        model = self._evaluator.build(allocation)
        self._keep(model, f"{number:04d}-built")
        state = read_weights(self._directory / "trials" / f"{number:04d}" / WEIGHTS, model)
        assert state is not None, f"trial {number} left no weights"
        model.load_state_dict(state)
        self._keep(model, f"{number:04d}")

    def _keep(self, model: nn.Module, name: str) -> None:
        found = evaluate(model.to(self._dense.device), self._images, self._answers)
        assert found.outcomes is not None
        found.outcomes.save(self._folder / f"{name}.safetensors")


def collect(problem: str, seeds: Sequence[int], trials: int, options: Mapping[str, str]) -> None:
    """Run one search a seed."""
    for seed in seeds:
        directory = RUNS / f"{problem}{seed}"
        given = {**_PROBLEMS[problem], "trials": trials, "seed": seed, "output": str(directory), "runner": "in-process"}
        config = SearchConfig.from_flat({**given, **options})
        if problem == "digits":
            config = replace(config, data=replace(config.data, split_seed=seed))
            config = with_dense_model(config, lambda what, done, total: None)
        launch(config, Tested(config, directory))
        print(f"{directory}: {len(open_run(directory).complete)} trials", flush=True)


@dataclass(frozen=True, kw_only=True)
class Search:
    """One search, and what its trials made of the test split.

    Attributes:
        trials: in the order of their numbers; those under the target.
        loads: how much of the target each uses.
        sample, tested: outcomes on the search and the test split, of the dense model under -1.
        test: errors on the test split after the fine-tune.
        wrong, built: answers that are wrong, on every image of the test split, after it and as built.
    """

    trials: tuple[FinishedTrial, ...]
    loads: NDArray[np.float64]
    sample: Mapping[int, Outcomes]
    tested: Mapping[int, Outcomes]
    test: NDArray[np.float64]
    wrong: NDArray[np.bool_]
    built: NDArray[np.bool_]


def read(directory: Path) -> Search:
    """A search that `collect` made."""
    run = open_run(directory)
    limits = run.budget(run.config.study.targets[0]).limits
    trials = tuple(trial for trial in run.complete if trial.load(limits) <= 1)
    names = {DENSE: "dense", **{trial.number: f"{trial.number:04d}" for trial in trials}}
    tested = {number: Outcomes.load(directory / "test" / f"{name}.safetensors") for number, name in names.items()}
    wrong = np.array([tested[trial.number].wrong.numpy() for trial in trials])
    built = [Outcomes.load(directory / "test" / f"{trial.number:04d}-built.safetensors") for trial in trials]
    sample = {trial.number: Outcomes.load(outcomes_of(directory, trial.number)) for trial in trials}
    dense = load_dense(run.config.objective(directory))
    kept = compare(zip(dense.answers, dense.batches.search_labels(), strict=True), dense.answers).outcomes
    assert kept is not None
    return Search(
        trials=trials,
        loads=np.array([trial.load(limits) for trial in trials]),
        sample={DENSE: kept, **sample},
        tested=tested,
        test=wrong.mean(1, dtype=np.float64),
        wrong=wrong,
        built=np.array([found.wrong.numpy() for found in built]),
    )


def evidence_on(search: Search, images: NDArray[np.int64] | None) -> tuple[Evidence, dict[str, NDArray[np.float64]]]:
    """What some images of the search split tell: the evidence, and figure -> its value for every trial."""
    places = slice(None) if images is None else torch.as_tensor(images)
    some = {number: found.at(places) for number, found in search.sample.items()}
    sample = Sample()
    for number, found in some.items():
        sample.add(number, found)
    evidence = evidence_of(sample, {trial.number: trial.allocation for trial in search.trials}, search.wrong.shape[1])
    figures = defaultdict[str, list[float]](list)
    for trial in search.trials:
        found = some[trial.number]
        assert found.kl is not None
        figures["error"].append(float(found.wrong.double().mean()))
        figures["KL"].append(float(found.kl.double().mean()))
        figures["cross-entropy"].append(float(found.cross_entropy.double().mean()))
        figures["expected error"].append(evidence.mean(trial.number))
    figures["error and cross-entropy"] = list(_standard(figures["error"]) + _standard(figures["cross-entropy"]))
    figures["KL and cross-entropy"] = list(_standard(figures["KL"]) + _standard(figures["cross-entropy"]))
    return evidence, {name: np.array(values) for name, values in figures.items()}


def _standard(values: Sequence[float]) -> NDArray[np.float64]:
    standard: NDArray[np.float64] = (np.array(values) - np.mean(values)) / max(float(np.std(values)), 1e-12)
    return standard


@dataclass(frozen=True, kw_only=True)
class Row:
    """How a figure did in one search: Kendall's tau with the test error, and the gaps of its picks."""

    tau: float
    gaps: tuple[float, ...]


def rows_of(search: Search, figures: Mapping[str, NDArray[np.float64]]) -> Iterator[tuple[str, Row]]:
    """Of every figure, of the warm start, and of the measured error with the cheapest of equal ones."""
    for name, values in figures.items():
        tau = float(kendalltau(values, search.test).statistic)
        yield name, Row(tau=tau, gaps=tuple(_gap(search, share, values, -search.loads) for share in SHARES))
    cheapest = tuple(_gap(search, share, figures["error"], search.loads) for share in SHARES)
    yield "error, then the cheapest", Row(tau=float("nan"), gaps=cheapest)
    starts = np.array([0.0 if trial.label == WARM_START else 1.0 for trial in search.trials])
    yield "warm start", Row(tau=float("nan"), gaps=tuple(_gap(search, share, starts, -search.loads) for share in SHARES))


def truth_of(search: Search, random: np.random.Generator, draws: int = 1000) -> tuple[float, ...]:
    """Mean gaps of a pick that knows the true errors, by simulation, for every share of the target."""
    sample = Sample()
    for number, found in search.sample.items():
        sample.add(number, joined([found, search.tested[number]]))
    evidence = evidence_of(sample, {trial.number: trial.allocation for trial in search.trials}, 0)
    truth = np.array([evidence.mean(trial.number) for trial in search.trials])
    luck = shrunk_covariance(search.wrong.astype(np.float32), nested=True) / search.wrong.shape[1]
    drawn = truth + random.multivariate_normal(np.zeros(len(truth)), luck, draws)
    return tuple(_mean_gap(drawn, truth, search.loads <= share) for share in SHARES)


def _mean_gap(drawn: NDArray[np.float64], truth: NDArray[np.float64], under: NDArray[np.bool_]) -> float:
    if not under.any():
        return float("nan")
    drawn = drawn[:, under]
    return float((drawn[:, truth[under].argmin()] - drawn.min(1)).mean())


def _gap(search: Search, share: float, values: NDArray[np.float64], then: NDArray[np.float64]) -> float:
    """Test error of the pick by least value, and of equal ones by what comes then, above the least of all."""
    under = np.flatnonzero(search.loads <= share)
    if not len(under):
        return float("nan")
    picked = min(under, key=lambda row: (values[row], then[row]))
    return float(search.test[picked] - search.test[under].min())


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Shares of trials: whose interval holds the test error; whose difference from the pick does; tied with the pick."""

    errors: float
    differences: float
    tied: float


def coverage_of(search: Search, evidence: Evidence) -> Coverage:
    """Of one search."""
    numbers = [trial.number for trial in search.trials]
    best = min(range(len(numbers)), key=lambda row: evidence.mean(numbers[row]))
    held, apart, tied = list[bool](), list[bool](), list[bool]()
    for row, number in enumerate(numbers):
        interval = evidence.expected(number)
        held.append(interval.low <= search.test[row] <= interval.high)
        if row != best:
            gap = evidence.difference(number, numbers[best])
            known = (gap.high - gap.low) / 2 / WIDTH
            moved = (search.wrong[row].astype(float) - search.wrong[best]).std() / np.sqrt(search.wrong.shape[1])
            apart.append(abs(search.test[row] - search.test[best] - gap.mean) <= WIDTH * np.hypot(known, moved))
            tied.append(gap.holds_zero)
    return Coverage(errors=float(np.mean(held)), differences=float(np.mean(apart)), tied=float(np.mean(tied)))


def report(repetitions: int) -> None:
    """Print the tables of all searches in `RUNS`."""
    for problem, sizes in (("digits", (None,)), ("fmnist", (None, 1000, 220)), ("probed", (None, 220)), ("solar", (None,))):
        searches = [read(path) for path in sorted(RUNS.glob(f"{problem}*")) if _is_done(path)]
        for size in sizes if searches else ():
            _table(problem, searches, size, repetitions if size else 1)
        if searches:
            _fine_tunes(searches)


def _is_done(directory: Path) -> bool:
    if not (directory / "pareto.json").exists():
        return False
    run = open_run(directory)
    return len(run.ended) >= run.config.study.trials


def _table(problem: str, searches: Sequence[Search], size: int | None, repetitions: int) -> None:
    random = np.random.default_rng(0)
    rows, covered, truth = defaultdict[str, list[Row]](list), list[Coverage](), list[Row]()
    for search in searches:
        truth.append(Row(tau=float("nan"), gaps=truth_of(search, random)))
        images = len(search.sample[DENSE].wrong)
        for _ in range(repetitions):
            chosen = None if size is None else random.choice(images, size, replace=False)
            evidence, figures = evidence_on(search, chosen)
            covered.append(coverage_of(search, evidence))
            for name, row in rows_of(search, figures):
                rows[name].append(row)
    rows["the true error (simulated)"] = truth
    where = f"{size or images} search images" + (f", {repetitions} draws of each search" if size else "")
    print(f"\n{problem}: {len(searches)} searches, {where}, {searches[0].wrong.shape[1]} test images\n")
    print("| picked by | tau | " + " | ".join(f"gap under {share:.0%} of the target" for share in SHARES) + " |")
    print("|---|---|" + "---|" * len(SHARES))
    for name, found in rows.items():
        tau = statistics.mean(row.tau for row in found)
        gaps = " | ".join(_spread([row.gaps[index] for row in found]) for index in range(len(SHARES)))
        print(f"| {name} | {'–' if tau != tau else f'{tau:.2f}'} | {gaps} |")
    shares = [statistics.mean(getattr(each, name) for each in covered) for name in ("errors", "differences", "tied")]
    print(
        "\nintervals hold {:.1%} of test errors, {:.1%} of differences; {:.0%} of trials are tied with the pick".format(*shares)
    )


def _spread(values: Sequence[float]) -> str:
    """Mean and its standard error, in points."""
    known = [100 * value for value in values if value == value]
    error = statistics.stdev(known) / len(known) ** 0.5 if len(known) > 1 else float("nan")
    return f"{statistics.mean(known):.2f} ± {error:.2f}" if known else "–"


def _fine_tunes(searches: Sequence[Search]) -> None:
    """How fine-tunes moved the test error, and how many made it worse beyond the interval of the difference."""
    pairs = [pair for search in searches for pair in zip(search.wrong, search.built, strict=True)]
    gaps = [difference_interval(after, before) for after, before in pairs]
    change, worse = [100 * gap.mean for gap in gaps], sum(gap.low > 0 for gap in gaps)
    moved = f"by {statistics.mean(change):+.2f} points on average, by {max(change):+.2f} at worst"
    print(f"\nfine-tunes moved the test error {moved};")
    print(f"{worse} of {len(gaps)} trials got worse beyond the interval of the difference")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect")
    collecting.add_argument("problem", choices=list(_PROBLEMS))
    collecting.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    collecting.add_argument("--trials", type=int, default=24)
    collecting.add_argument("--checkpoint", default=argparse.SUPPRESS, help="where it is not in data/")
    collecting.add_argument("--data-dir", default=argparse.SUPPRESS)
    reporting = commands.add_parser("report")
    reporting.add_argument("--repetitions", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command == "collect":
        options = {name: value for name, value in vars(arguments).items() if name in ("checkpoint", "data_dir")}
        collect(arguments.problem, arguments.seeds, arguments.trials, options)
    else:
        report(arguments.repetitions)


if __name__ == "__main__":
    main()
