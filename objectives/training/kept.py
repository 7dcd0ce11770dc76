"""Which weights of a fine-tune a candidate keeps: those as built, those at a rung or the last ones, whichever are the best."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from objectives.error import Evaluation

_ROUNDING = 1e-7  # nats: what diverges no more than this as built answers as the dense model does


@dataclass(frozen=True, kw_only=True)
class Best:
    """What is known of the best weights so far, by figures on the rung images.

    The best ones diverge least from the dense model. A model that answers as the dense one does as built, the dense reference
    above all, could only lose by that, whatever it learns: its best weights have the least cross-entropy of the labels.

    Attributes:
        step: optimiser step; 0 for those as built, of a recipe the step of its cut.
        loss: their divergence or cross-entropy, in nats.
        labels: whether it is the cross-entropy.
    """

    step: int
    loss: float
    labels: bool = False

    @classmethod
    def begin(cls, figures: Evaluation, step: int = 0) -> "Best":
        """Of a model before its first step."""
        kl, cross_entropy = _losses(figures)
        return cls(step=step, loss=cross_entropy, labels=True) if kl <= _ROUNDING else cls(step=step, loss=kl)

    def beaten(self, figures: Evaluation, step: int) -> "Best | None":
        """What replaces it where the weights at a later step are as good, or better; else None."""
        loss = _losses(figures)[self.labels]
        return Best(step=step, loss=loss, labels=self.labels) if loss <= self.loss else None


class Kept:
    """The best weights of one fine-tune so far, in a copy on the CPU.

    Args:
        model: as built, before its first step.
        best: of its fine-tune so far.
        weights: the best ones, where they are not those as built.

    Attributes:
        best: what is known of them.
        weights: copies of them.
    """

    def __init__(self, model: nn.Module, best: Best, weights: Mapping[str, Tensor] | None = None) -> None:
        self.best, self.weights = best, _copied(model) if weights is None else weights

    def offer(self, model: nn.Module, step: int, figures: Evaluation) -> None:
        """Take the weights of a model at a step where they are the best."""
        if found := self.best.beaten(figures, step):
            self.best, self.weights = found, _copied(model)


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}


def _losses(figures: Evaluation) -> tuple[float, float]:
    """Divergence from the dense model, and cross-entropy of the labels."""
    assert figures.kl is not None and figures.cross_entropy is not None
    return figures.kl, figures.cross_entropy
