"""What many fine-tunes made of the same images: their errors and divergences, and how far chance moves them together."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from objectives.outcomes import Outcomes

Floats = NDArray[np.float64]

DENSE = -1  # in place of a number: the dense model as loaded
_PRIOR = 16.0  # columns a row that the target of a covariance counts as


@dataclass
class Sample:
    """Outcomes of models on one split, kept as small as they are in files.

    Attributes:
        numbers: of the models, in the order of the rows.
    """

    numbers: list[int] = field(default_factory=list)
    _wrong: list[NDArray[np.uint8]] = field(default_factory=list, repr=False)
    _kl: list[NDArray[np.float16]] = field(default_factory=list, repr=False)

    @property
    def images(self) -> int:
        """How many each was measured on; 0 without a model."""
        return len(self._wrong[0]) if self._wrong else 0

    def add(self, number: int, outcomes: "Outcomes") -> bool:
        """Take a model's outcomes; False where they are not of the same images as the others', and are of no use."""
        if outcomes.kl is None or (self._wrong and len(outcomes.wrong) != self.images):
            return False
        self.numbers.append(number)
        self._wrong.append(outcomes.wrong.numpy().astype(np.uint8))
        self._kl.append(outcomes.kl.half().numpy())
        return True

    def wrong(self, number: int) -> NDArray[np.bool_]:
        """Whether a model's answers are wrong, [images].

        Raises:
            ValueError: the model is not there.
        """
        return self._wrong[self.numbers.index(number)].astype(bool)

    def errors(self) -> tuple[Floats, Floats]:
        """Error of every model, and the covariance of these figures if other images had been drawn."""
        return _mean(np.stack(self._wrong).astype(np.float32), nested=True)

    def divergences(self) -> tuple[Floats, Floats]:
        """The same of mean divergences from the dense model, in nats."""
        return _mean(np.stack(self._kl).astype(np.float32))


def _mean(values: NDArray[np.float32], nested: bool = False) -> tuple[Floats, Floats]:
    """Means of rows, [rows], and the covariance of these, [rows, rows]."""
    return values.mean(1, dtype=np.float64), shrunk_covariance(values, nested) / values.shape[1]


def shrunk_covariance(values: NDArray[np.float32], nested: bool = False) -> Floats:
    """Covariance of rows, [rows, rows], drawn to one correlation for all pairs as far as the columns are too few to tell.

    The target counts as sixteen columns a row: the mean of an inverse Wishart posterior. Fewer leave covariances of some
    hundred columns that a regression follows too far; measured in benchmarks/results/evidence_cpu_202611.md.

    Wrong answers of a good model are mostly among those of a bad one. So the covariance of two is at most the smaller variance,
    and the target is one share of that. One correlation for all would say that the errors of bad models have the luck of good
    ones many times over, and a regression would follow it to below all errors that were measured (Peelle's puzzle).

    Args:
        values: [rows, columns].
        nested: whether they are wrong answers: 0 or 1.
    """
    rows, count = values.shape
    centred = values - values.mean(1, keepdims=True)
    found = (centred @ centred.T / count).astype(np.float64)
    variances = np.maximum(np.diag(found), 1e-12)
    scale = np.minimum.outer(variances, variances) if nested else np.sqrt(np.outer(variances, variances))
    others = ~np.eye(rows, dtype=bool)
    target = scale * (float((found / scale)[others].mean()) if others.any() else 0.0)
    prior = _PRIOR * rows
    shrunk: Floats = (count * found + prior * target) / (count + prior)
    np.fill_diagonal(shrunk, variances)
    return shrunk
