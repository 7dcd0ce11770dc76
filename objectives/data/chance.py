"""Whether a model's answers are any better than those that know nothing of the images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from objectives.data.class_order import Counts, images_of, kappa

_DEVIATIONS = 2.0


@dataclass(frozen=True, kw_only=True)
class Chance:
    """What always answering the most common class of a split comes to.

    Attributes:
        error: its top-1 error.
        deviation: standard error of that, for as many images.
    """

    error: float
    deviation: float


def near_chance(counts: Counts) -> Chance | None:
    """What a model is no better than, if it is not: two standard errors below that at most.

    Where one class is nearly all of a small split, a good model may be within them: answers that go with the labels by more
    than three standard errors of Cohen's kappa are better than chance, if they beat the most common class at all.

    Args:
        counts: images of every pair of a label and the model's answer.
    """
    labels, answers = images_of(counts)
    if len(set(labels.tolist())) < 2:
        return None  # of one class alone nothing can be said
    common, size = float(np.bincount(labels).max()) / len(labels), len(labels)
    chance = Chance(error=1 - common, deviation=(common * (1 - common) / size) ** 0.5)
    error = float(np.mean(labels != answers))
    if error < chance.error - _DEVIATIONS * chance.deviation:
        return None
    follows = error < chance.error and kappa(labels, answers) > 3 * _deviation(labels, answers)
    return None if follows else chance


def _deviation(labels: NDArray[np.int64], answers: NDArray[np.int64]) -> float:
    """Standard error of kappa where answers have nothing to do with labels (Fleiss, Cohen and Everitt, 1969)."""
    classes = int(max(labels.max(), answers.max())) + 1
    true, given = (np.bincount(values, minlength=classes) / len(values) for values in (labels, answers))
    chance = float(true @ given)
    variance = chance + chance**2 - float((true * given * (true + given)).sum())
    return float(max(variance, 0.0) ** 0.5 / ((1 - chance) * len(labels) ** 0.5))
