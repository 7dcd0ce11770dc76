"""In which order class folders get their labels: timm's order and torchvision's, and which one a model's answers fit."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.data.config import ClassOrder

Counts = Sequence[tuple[int, int, int]]  # label, answer, images

# What makes an order one that a model was clearly trained with.
_LEAST_ERROR, _LEAST_GAIN = 0.1, 0.05  # shares of the images
_LEAST_KAPPA = 0.3  # agreement beyond what answers that know nothing of the images would have
_LEAST_RECALL = 0.3  # of the mean class: a model that knows a few frequent classes has no order of its own
_LEAST_DEVIATIONS = 4.0  # of what images speak for it, over what images speak against it
_MOST_CLASSES = 4000  # that every assignment of is looked at: a matrix of so many rows and columns


def natural_key(name: str) -> list[str | int]:
    """timm's key of a class folder or file: numbers by their value, upper case as lower case.

    That of timm.utils.misc, but for digits that are no numbers (²), which fail there.
    """
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"(\d+)", name.lower()))]


_KEYS: dict[ClassOrder, Callable[[str], Any]] = {
    "timm": lambda name: (natural_key(name), name),  # timm leaves open which of Dog and dog is first
    "torchvision": lambda name: name,
}


def in_order(names: Iterable[str], order: ClassOrder) -> list[str]:
    """Class folders in the order of their labels, whatever order they come in."""
    return sorted(names, key=_KEYS[order])


def first_difference(names: Sequence[str]) -> int | None:
    """The first label that timm and torchvision give to different class folders; None where their orders are the same."""
    pairs = zip(in_order(names, "timm"), in_order(names, "torchvision"), strict=True)
    return next((label for label, (timm, torchvision) in enumerate(pairs) if timm != torchvision), None)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """An order of the classes in which a model is clearly right, where it is clearly less so in the one that is used.

    Attributes:
        error, fitted: top-1 error in the order that is used, and in the one that fits.
        order: whose it is; None for neither's.
        labels: for every output of the model, the label (in the order that is used) of the class that it means.
        guessed: outputs that the images say nothing of, which keep what is left.
    """

    error: float
    fitted: float
    order: ClassOrder | None
    labels: tuple[int, ...]
    guessed: tuple[int, ...] = ()


def find_fit(counts: Counts, classes: int, orders: Mapping[ClassOrder, Sequence[int]]) -> Fit | None:
    """The order of classes that a model's answers fit, if it is clearly another one than that of the labels.

    A known order is taken at its word. Any other is fitted to one half of the images and judged on the other half, both ways
    round: fitted to noise, or to few images, it is of no use there.

    Args:
        counts: images of every pair of a label and the model's answer, in the order that is used.
        classes: of the model.
        orders: known orders: for every label, the output that means its class there.
    """
    labels, answers = images_of(counts)
    if not len(labels):
        return None
    known = {name: np.asarray(order) for name, order in orders.items() if len(order) == classes}
    fits = {name: order for name, order in known.items() if _is_clear(labels, answers, order[labels], 0.75)}
    best = max(fits, key=lambda name: int((fits[name][labels] == answers).sum()), default=None)
    if best is not None:
        return _fit(labels, answers, fits[best], best)
    if classes > _MOST_CLASSES or not _is_clear(labels, answers, _elsewhere(labels, answers, classes), 0.5):
        return None
    return _fit(labels, answers, _assigned(labels, answers, classes), None)


def images_of(counts: Counts) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Label and answer of every image."""
    table = np.asarray(counts, dtype=np.int64).reshape(-1, 3)
    return np.repeat(table[:, 0], table[:, 2]), np.repeat(table[:, 1], table[:, 2])


def _matrix(labels: NDArray[np.int64], answers: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Images of every label and answer."""
    return np.bincount(labels * classes + answers, minlength=classes * classes).reshape(classes, classes)


def _assigned(labels: NDArray[np.int64], answers: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """For every label the output that means its class, by the assignment of most agreement; as they are where they tie."""
    matrix = _matrix(labels, answers, classes).astype(np.float64)
    from scipy.optimize import linear_sum_assignment  # half a second to import, and needed by few

    _, order = linear_sum_assignment(matrix + 0.5 * np.eye(classes) / classes, maximize=True)
    return np.asarray(order)


def _elsewhere(labels: NDArray[np.int64], answers: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """For every image the output that should mean its class, by an assignment that this image had no part in."""
    shuffled = np.random.default_rng(0).permutation(len(labels))
    halves, expected = (shuffled[::2], shuffled[1::2]), np.empty_like(labels)
    for fitted, judged in (halves, halves[::-1]):
        expected[judged] = _assigned(labels[fitted], answers[fitted], classes)[labels[judged]]
    return expected


def _is_clear(labels: NDArray[np.int64], answers: NDArray[np.int64], expected: NDArray[np.int64], left: float) -> bool:
    """Whether answers agree clearly better with what another order expects than with the labels.

    Args:
        labels, answers, expected: of every image.
        left: the most that may be left of the error, as a share of it.
    """
    before, after = labels == answers, expected == answers
    error, fitted = 1 - before.mean(), 1 - after.mean()
    better, worse = int((after & ~before).sum()), int((before & ~after).sum())
    return bool(
        error >= _LEAST_ERROR
        and error - fitted >= _LEAST_GAIN
        and fitted <= left * error
        and better - worse >= _LEAST_DEVIATIONS * max(better + worse, 1) ** 0.5
        and kappa(expected, answers) >= _LEAST_KAPPA
        and _recall(labels, after) >= _LEAST_RECALL
    )


def _recall(labels: NDArray[np.int64], right: NDArray[np.bool_]) -> float:
    """Share of a class's images that are right, in the mean over the classes that have images."""
    images = np.bincount(labels)
    return float((np.bincount(labels, weights=right)[images > 0] / images[images > 0]).mean())


def kappa(labels: NDArray[np.int64], answers: NDArray[np.int64]) -> float:
    """Cohen's kappa: agreement beyond that of answers that are as frequent, but know nothing of the images; 1 at most."""
    classes = int(max(labels.max(), answers.max())) + 1
    shares = [np.bincount(values, minlength=classes) / len(values) for values in (labels, answers)]
    chance = float(shares[0] @ shares[1])
    return 1.0 if chance == 1 else float((np.mean(labels == answers) - chance) / (1 - chance))


def _fit(labels: NDArray[np.int64], answers: NDArray[np.int64], order: NDArray[np.int64], name: ClassOrder | None) -> Fit:
    """What is said of an order, given as the output that means every label."""
    known = np.isin(np.arange(len(order)), labels[order[labels] == answers])
    meant = np.argsort(order)
    return Fit(
        error=float(np.mean(labels != answers)),
        fitted=float(np.mean(order[labels] != answers)),
        order=name,
        labels=tuple(meant.tolist()),
        guessed=() if name is not None else tuple(int(output) for output in np.flatnonzero(~known[meant])),
    )
