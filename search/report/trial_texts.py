"""The figures of a trial as the page writes them; '–' for a figure that it does not have."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from objectives.cost.spec import COSTS, Cost, CostSpec
from objectives.units import format_divergence, format_kept, format_ratio
from search.evidence.intervals import Interval
from search.report.verdict import MISSING, expected_text
from search.run.finished_trial import FinishedTrial
from search.run.summary import DenseFigures, RunSummary


@dataclass(frozen=True, kw_only=True)
class CostTexts:
    """A cost: its amount, and what is kept of the dense model's."""

    amount: str = MISSING
    kept: str = MISSING


@dataclass(frozen=True, kw_only=True)
class TrialTexts:
    """A trial in words.

    Attributes:
        before: error as built.
        error: after the short fine-tune, on the search split.
        expected: error that the test split should show, with its interval.
        ratio: of that to the dense model's, with its interval; of the measured errors where no more is known.
        kl_before: divergence as built.
        kl: after the short fine-tune.
        time: seconds, and the seed.
        costs: cost -> its texts.
    """

    before: str
    error: str
    expected: str
    ratio: str
    kl_before: str
    kl: str
    time: str
    costs: Mapping[Cost, CostTexts]

    def to_json(self) -> dict[str, str]:
        """As the page's script reads it: a cost has a text by its name, and one by that of its share."""
        named = {name: getattr(self, name) for name in ("before", "error", "expected", "ratio", "kl_before", "kl", "time")}
        for cost, texts in self.costs.items():
            named |= {cost: texts.amount, COSTS[cost].kept: texts.kept}
        return named


def texts_of(trial: FinishedTrial, summary: RunSummary, lost: Interval | None = None) -> TrialTexts:
    """The texts of a trial.

    Args:
        trial: of the run.
        summary: of the run.
        lost: its error minus that of the dense reference, on endless images; None where that is not known.
    """
    return TrialTexts(
        before=number_text(trial.error_before, ".2%"),
        error=number_text(trial.error, ".2%"),
        expected=_text(expected_text(trial.expected)),
        ratio=_ratio(trial, summary.dense, lost),
        kl_before=_divergence(trial.kl_before),
        kl=_divergence(trial.kl),
        time=f"{number_text(trial.seconds, '.0f')} s, seed {number_text(trial.seed, '.0f')}",
        costs={spec.name: _cost(spec, trial, summary) for spec in summary.costs},
    )


def reference_of(dense: DenseFigures) -> float:
    """The dense error that trials are compared with: the expected one where it is known, else the measured one."""
    return _measured_reference(dense) if dense.expected is None else dense.expected.mean


def reference_text(dense: DenseFigures) -> str:
    """That error as text, with its interval where it is known."""
    return number_text(_measured_reference(dense), ".2%") if dense.expected is None else _text(expected_text(dense.expected))


def _measured_reference(dense: DenseFigures) -> float:
    """Without a fine-tuned one, the error as loaded."""
    return dense.error if dense.error_finetuned is None else dense.error_finetuned


def reference_name(dense: DenseFigures) -> str:
    """What that is."""
    return "dense, not fine-tuned" if dense.error_finetuned is None else "dense, given the same fine-tune"


def number_text(value: float | None, form: str) -> str:
    """A figure in a format, with a space before the percent sign that does not break a line."""
    return MISSING if value is None or not math.isfinite(value) else format(value, form).replace("%", "\u00a0%")


def _ratio(trial: FinishedTrial, dense: DenseFigures, lost: Interval | None) -> str:
    """Of two expected errors where both are known; else of two measured on the same images."""
    if lost is not None and dense.expected is not None and dense.expected.mean > 0:
        return format_ratio(*(max(0.0, 1 + value / dense.expected.mean) for value in (lost.mean, lost.low, lost.high)))
    reference = _measured_reference(dense)
    return f"×{trial.figure('error') / reference:.2f}" if reference > 0 else MISSING


def _cost(spec: CostSpec, trial: FinishedTrial, summary: RunSummary) -> CostTexts:
    value = trial.figure(spec.name)
    if not math.isfinite(value):
        return CostTexts()
    return CostTexts(amount=_text(spec.format(value)), kept=_text(format_kept(value / summary.dense.costs[spec.name])))


def _divergence(value: float | None) -> str:
    return MISSING if value is None or not math.isfinite(value) else format_divergence(value)


def _text(text: str) -> str:
    """With spaces that do not break a line between a number and its unit."""
    return text.replace(" ", "\u00a0").replace("\u00a0(", " (")
