"""The figures of a trial as the page writes them; '–' for a figure that it does not have."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from objectives.cost.spec import COSTS, Cost, CostSpec
from objectives.units import format_divergence, format_kept
from search.run.finished_trial import FinishedTrial
from search.run.summary import DenseFigures, RunSummary

MISSING = "–"


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
        error: after the short fine-tune.
        ratio: of that to the dense model's.
        kl_before: divergence as built.
        kl: after the short fine-tune.
        time: seconds, and the seed.
        costs: cost -> its texts.
    """

    before: str
    error: str
    ratio: str
    kl_before: str
    kl: str
    time: str
    costs: Mapping[Cost, CostTexts]

    def to_json(self) -> dict[str, str]:
        """As the page's script reads it: a cost has a text by its name, and one by that of its share."""
        named = {name: getattr(self, name) for name in ("before", "error", "ratio", "kl_before", "kl", "time")}
        for cost, texts in self.costs.items():
            named |= {cost: texts.amount, COSTS[cost].kept: texts.kept}
        return named


def texts_of(trial: FinishedTrial, summary: RunSummary) -> TrialTexts:
    """The texts of a trial."""
    reference, error = reference_of(summary.dense), trial.error
    return TrialTexts(
        before=number_text(trial.error_before, ".2%"),
        error=number_text(error, ".2%"),
        ratio=f"×{trial.figure('error') / reference:.2f}" if reference > 0 else MISSING,
        kl_before=_divergence(trial.kl_before),
        kl=_divergence(trial.kl),
        time=f"{number_text(trial.seconds, '.0f')} s, seed {number_text(trial.seed, '.0f')}",
        costs={spec.name: _cost(spec, trial, summary) for spec in summary.costs},
    )


def reference_of(dense: DenseFigures) -> float:
    """The dense error that trials are compared with: without a fine-tuned one, the error as loaded."""
    return dense.error if dense.error_finetuned is None else dense.error_finetuned


def reference_name(dense: DenseFigures) -> str:
    """What that is."""
    return "dense, not fine-tuned" if dense.error_finetuned is None else "dense, given the same fine-tune"


def number_text(value: float | None, form: str) -> str:
    """A figure in a format, with a space before the percent sign that does not break a line."""
    return MISSING if value is None or not math.isfinite(value) else format(value, form).replace("%", "\u00a0%")


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
