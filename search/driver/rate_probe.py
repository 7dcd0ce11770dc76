"""The learning rate of a run's fine-tunes: probed once, before its first trial, on two candidates."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from objectives.cost.spec import MAIN
from objectives.dense_model import DenseModel
from objectives.runtime.progress import Progress
from objectives.training.config import UNPROBED
from objectives.training.rate import RATE, Rate, RateProbe
from search.budgets.parametrisation import Parametrisation
from search.config import SearchConfig
from search.driver.observer import Observer
from search.driver.preliminary import run_before
from search.layout import JOURNAL
from search.run.summary_file import read_summary
from search.runners.base import Runner
from search.study.replay import journal_numbers
from search.trial import Probe, Probed
from spaces.allocation import Allocation
from spaces.errors import RunError

RATES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
_FIRST = RATES[2::2]  # at once; then the neighbours of the best one, until they are known
_SHARE = 0.25  # of a trial's steps
_WORTH = 0.01  # what a fine-tune must take off log KL, on average over the two, to be worth its time
_FOLDER = "probes"  # in the run directory: what a lost worker left

Kls = Sequence[float]  # of the two candidates, in nats; NaN where a fine-tune diverged or was lost


def check_rate(directory: Path, config: SearchConfig) -> None:
    """Before a run is continued, or begun where a launch ended before its first trial: that one's rate is not taken.

    Raises:
        RunError: the run has lost the rate of its trials; probed on another machine, it might be another.
    """
    path = directory / RATE
    if not _has_trials(directory):
        path.unlink(missing_ok=True)
    elif config.finetune.is_probed and not path.exists():
        raise RunError(f"{path} is missing: restore it, or choose another --output")


def _has_trials(directory: Path) -> bool:
    try:
        shown = read_summary(directory).states
    except FileNotFoundError:
        shown = {}
    return bool(shown) or bool(journal_numbers(directory / JOURNAL))  # tables lag behind


def settle_rate(
    config: SearchConfig,
    directory: Path,
    dense: DenseModel,
    parametrisation: Parametrisation,
    runner: Runner,
    observer: Observer,
) -> None:
    """Probe the learning rate of a run, unless it is given or known, and keep it in the run directory.

    Args:
        config: of the search.
        directory: of the run.
        dense: of the search.
        parametrisation: of its allocations.
        runner: prepared, and running nothing.
        observer: told how many probes are done, and what was found.

    Raises:
        RunError: the file of the run's rate cannot be read, or no probe came to an end.
    """
    if not config.finetune.is_probed:
        return
    known = Rate.load(directory)
    if known is not None:
        observer.say(f"learning rate: {_text(known.lr)}, as this run began with")
    elif config.study.recipe is not None:
        Rate(lr=UNPROBED, steps=config.finetune.steps).save(directory)
        observer.say(f"learning rate: {_text(UNPROBED)}; a recipe alone has no candidates to probe it on, --lr gives another")
    else:
        candidates = _candidates(dense, parametrisation)
        steps = max(1, round(_SHARE * config.finetune.steps))
        bench = _Bench(runner, directory / _FOLDER, list(candidates), steps, observer.stage)
        built, found = bench.climb()
        lr = best_rate(built, found)
        probes = tuple(bench.records(list(candidates.values())))
        Rate(lr=lr, steps=config.finetune.steps if lr else 0, probes=probes).save(directory)
        observer.say(_told(lr, built, found, list(candidates.values())))


def best_rate(built: Kls, found: Mapping[float, Kls]) -> float | None:
    """The rate after whose fine-tune the mean of log KL is least; None where that is not worth a fine-tune.

    Where a fine-tune makes a candidate worse, it counts as built: a trial keeps its best weights. A rate at which one diverges
    is out of the question. Of equal rates the smaller one is taken.

    Args:
        built: the candidates as built.
        found: learning rate -> the candidates after their fine-tunes.
    """
    gains = {lr: gain for lr, kls in sorted(found.items()) if math.isfinite(gain := _gain(built, kls))}
    best = min(gains, key=gains.__getitem__, default=None)
    return best if best is not None and gains[best] <= -_WORTH else None


def _gain(built: Kls, kls: Kls) -> float:
    """What a fine-tune changes of the mean of log KL: 0 or less; infinite where one diverged."""
    if not all(map(math.isfinite, kls)):
        return math.inf
    pairs = [(before, min(before, after)) for before, after in zip(built, kls, strict=True)]
    return sum(math.log(after / before) if after > 0 else 0.0 for before, after in pairs) / len(pairs)


def _candidates(dense: DenseModel, parametrisation: Parametrisation) -> dict[Allocation, float]:
    """The candidates, with the share of the MACs that each keeps: in the middle of the first target's band, and the smallest
    of those at the lower ends. A fine-tune has most to mend there, and where it mends nothing, weights as built are kept.
    """

    def macs(allocation: Allocation) -> float:
        return dense.costs.count(allocation, MAIN.name) / dense.costs.dense[MAIN.name]

    lows = parametrisation.budgets.lows
    middle = parametrisation.decode(parametrisation.encode(0, (lows[0] + 1) / 2))
    ends = [parametrisation.decode(parametrisation.encode(target, low)) for target, low in enumerate(lows)]
    return {allocation: macs(allocation) for allocation in (middle, min(ends, key=macs))}


@dataclass
class _Bench:
    """Runs probes of all candidates, a stage of rates at a time.

    Attributes:
        runner, folder: as of `run_before`.
        candidates: to be probed.
        steps: of a probe.
        stage: told how many are done.
    """

    runner: Runner
    folder: Path
    candidates: Sequence[Allocation]
    steps: int
    stage: Progress

    def __post_init__(self) -> None:
        self._numbers, self._done = itertools.count(1), 0
        self._kls: dict[float | None, Kls] = {}

    def climb(self) -> tuple[Kls, dict[float, Kls]]:
        """KL as built, and after the fine-tunes at every rate that was probed.

        Raises:
            RunError: no probe came to an end.
        """
        self._probe([None, *_FIRST], most=1 + len(_FIRST) + 2)
        while missing := self._neighbours():
            self._probe(missing, most=len(self._kls) + len(missing))
        self.stage("learning rate", self._done, self._done)
        return self._built, self._found

    def records(self, macs: Sequence[float]) -> Iterable[RateProbe]:
        """All that was probed, in ascending order of rates; for candidates that keep these shares of the MACs."""
        for lr, kls in sorted(self._kls.items(), key=lambda entry: entry[0] or 0.0):
            for share, kl in zip(macs, kls, strict=True):
                steps = self.steps if lr else 0
                yield RateProbe(macs=share, lr=lr, steps=steps, kl=kl if math.isfinite(kl) else None)

    @property
    def _built(self) -> Kls:
        return self._kls[None]

    @property
    def _found(self) -> dict[float, Kls]:
        return {lr: kls for lr, kls in self._kls.items() if lr is not None}

    def _neighbours(self) -> list[float]:
        """Rates beside the best one that are not known; where none helps, smaller ones."""
        best = RATES.index(best_rate(self._built, self._found) or min(self._found))
        return [lr for lr in RATES[max(0, best - 1) : best + 2] if lr not in self._kls]

    def _probe(self, rates: Sequence[float | None], most: int) -> None:
        pairs = [(lr, allocation) for lr in rates for allocation in self.candidates]
        jobs = [
            Probe(number=-next(self._numbers), allocation=allocation, lr=lr or UNPROBED, steps=self.steps if lr else 0)
            for lr, allocation in pairs
        ]

        def ended(result: object) -> None:
            self._done += 1
            self.stage("learning rate", self._done, max(self._done, most * len(self.candidates)))

        self.stage("learning rate", self._done, most * len(self.candidates))
        results = run_before(self.runner, jobs, self.folder, ended)
        found = [result.kl if isinstance(result := results.get(job.number), Probed) else math.nan for job in jobs]
        for index, lr in enumerate(rates):
            count = len(self.candidates)
            self._kls[lr] = found[index * count : (index + 1) * count]
        if not all(map(math.isfinite, self._kls[None])):
            raise RunError("the learning rate could not be probed: a candidate as built gave no figure; --lr needs no probe")


def _told(lr: float | None, built: Kls, found: Mapping[float, Kls], macs: Sequence[float]) -> str:
    """What was found, for a person."""
    if lr is None:
        kls = ", ".join(f"{kl:.3g} at {share:.1%}" for kl, share in zip(built, macs, strict=True))
        return f"learning rate: none of {len(found)} helps (KL as built {kls} of {MAIN.word}): trials take no steps"
    pairs = zip(built, found[lr], macs, strict=True)
    changes = [
        (f"{before:.3g} -> {after:.3g}" if after < before else f"{before:.3g} as built", at) for before, after, at in pairs
    ]
    kls = ", ".join(f"{change} at {share:.1%}" for change, share in changes)
    return f"learning rate: {_text(lr)}, of {len(found)} that were probed: KL {kls} of {MAIN.word}"


def _text(lr: float | None) -> str:
    return "none, trials take no steps" if lr is None else f"{lr:.0e}"
