"""Orders of classes: those of timm and torchvision, and when a model's answers say clearly that its own is another one."""

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score
from timm.utils.misc import natural_key as timms_key

from objectives.data.chance import near_chance
from objectives.data.class_order import Counts, find_fit, first_difference, in_order, kappa, natural_key

SHAPES = [f"shape_{number}" for number in range(1, 13)]
TORCHVISION = ["shape_1", "shape_10", "shape_11", "shape_12", *(f"shape_{number}" for number in range(2, 10))]
IN_TORCHVISION = [TORCHVISION.index(name) for name in SHAPES]


def counts_of(labels: Sequence[int] | NDArray[np.int64], answers: Sequence[int] | NDArray[np.int64]) -> Counts:
    pairs = Counter(zip(map(int, labels), map(int, answers), strict=True))
    return [(label, answer, count) for (label, answer), count in pairs.items()]


def answered(order: Sequence[int], images: int, accuracy: float, seed: int = 0, prior: Sequence[float] | None = None) -> Counts:
    """Of a model of this accuracy whose outputs mean the classes in this order: what it gets wrong it guesses."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(order), images, p=prior)
    answers = np.where(rng.random(images) < accuracy, np.asarray(order)[labels], rng.integers(0, len(order), images))
    return counts_of(labels, answers)


def test_the_key_is_timms_wherever_it_has_one() -> None:
    rng = random.Random(0)
    for _ in range(500):
        name = "".join(rng.choice("abAB0129_ -é٣ß") for _ in range(7))
        assert natural_key(name) == timms_key(name)
    with pytest.raises(ValueError, match="invalid literal"):
        timms_key("²")
    assert natural_key("²") == ["²"]


def test_orders_and_the_first_label_that_differs() -> None:
    assert in_order(reversed(SHAPES), "timm") == SHAPES
    assert in_order(SHAPES, "torchvision") == TORCHVISION
    assert first_difference(SHAPES) == 1
    assert in_order(["Dog", "cat", "Ant"], "timm") == ["Ant", "cat", "Dog"]
    assert first_difference(["Dog", "cat", "Ant"]) == 1
    assert first_difference(["cat", "dog", "n01443537", "n01629819"]) is None


@pytest.mark.parametrize(("images", "accuracy"), [(40, 1.0), (100, 0.9), (1000, 0.4)])
def test_torchvisions_order_is_recognised(images: int, accuracy: float) -> None:
    fit = find_fit(answered(IN_TORCHVISION, images, accuracy), 12, {"torchvision": IN_TORCHVISION})
    assert fit is not None
    assert fit.order == "torchvision"
    assert [SHAPES[label] for label in fit.labels] == TORCHVISION
    assert fit.error > fit.fitted
    assert fit.fitted == pytest.approx((1 - accuracy) * 11 / 12, abs=0.07)


def test_any_other_order_is_found_and_what_it_does_not_know_is_told() -> None:
    """Outputs 3 and 7 belong to classes without images."""
    order = np.random.default_rng(3).permutation(12).tolist()
    missing = [order.index(3), order.index(7)]
    counts = [entry for entry in answered(order, 600, 0.95) if entry[0] not in missing and entry[1] not in (3, 7)]
    fit = find_fit(counts, 12, {"torchvision": IN_TORCHVISION})
    assert fit is not None
    assert (fit.order, fit.guessed) == (None, (3, 7))
    assert all(fit.labels[output] == label for label, output in enumerate(order) if label not in missing)
    assert sorted(fit.labels) == list(range(12))


def test_two_classes_in_the_wrong_order_of_eight_are_found() -> None:
    """A quarter of the images is wrong."""
    order = [0, 1, 2, 3, 4, 5, 7, 6]
    fit = find_fit([(label, output, 25) for label, output in enumerate(order)], 8, {})
    assert fit is not None
    assert (fit.error, fit.fitted, fit.order, list(fit.labels)) == (0.25, 0.0, None, order)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("images", [8, 30, 100, 600])
@pytest.mark.parametrize("classes", [2, 5, 12, 40])
def test_nothing_is_found_in_noise_or_in_the_order_that_is_used(images: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng([seed, images, classes])
    prior, other = rng.dirichlet(np.ones(classes)).tolist(), rng.permutation(classes).tolist()
    for order, accuracy in ((other, 0.0), (list(range(classes)), rng.random()), ([int(rng.integers(classes))] * classes, 1.0)):
        assert find_fit(answered(order, images, accuracy, seed, prior), classes, {"torchvision": other}) is None


def test_classes_that_are_confused_are_no_order() -> None:
    """Of ten, two are taken for each other more often than not, and three more for one."""
    counts = [(label, label, 50) for label in range(5)] + [(5, 5, 20), (5, 6, 30), (6, 6, 20), (6, 5, 30)]
    counts += [(label, 9, 45) for label in (7, 8, 9)]
    assert find_fit(counts, 10, {}) is None


def test_a_few_images_that_all_fit_are_not_enough() -> None:
    order = np.random.default_rng(1).permutation(12).tolist()
    assert find_fit([(label, output, 1) for label, output in enumerate(order)], 12, {}) is None
    assert find_fit([(0, 1, 5), (1, 0, 5)], 2, {"torchvision": [1, 0]}) is None, "ten images of two classes"
    assert find_fit([], 12, {"torchvision": order}) is None


def test_kappa_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels, answers = rng.integers(0, 4, 80), rng.integers(0, 4, 80)
    answers[:40] = labels[:40]
    assert kappa(labels, answers) == pytest.approx(cohen_kappa_score(labels, answers))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([(0, 0, 90), (0, 1, 10), (1, 1, 90), (1, 0, 10)], None),  # two classes, 10 % error
        ([(0, 0, 60), (0, 1, 40), (1, 1, 61), (1, 0, 39)], None),  # 39.5 %: more than two errors of 3.5 points below 50 %
        ([(0, 0, 55), (0, 1, 45), (1, 1, 54), (1, 0, 46)], (0.5, 0.0354)),
        ([(0, 0, 180), (1, 0, 20)], (0.1, 0.0212)),  # always the common class
        ([(0, 0, 180), (1, 1, 10), (1, 0, 10)], None),  # half of the rare class is known: 5 %
        ([(0, 0, 18), (1, 1, 2)], None),  # without an error
        ([(0, 0, 150), (0, 1, 30), (1, 1, 10), (1, 0, 10)], (0.1, 0.0212)),  # 20 % is worse than 10 %
        ([(0, 0, 30), (0, 1, 20)], None),  # one class alone says nothing
        ([(label, (label + 1) % 10, 20) for label in range(10)], (0.9, 0.0212)),
        ([], None),
    ],
)
def test_chance_is_the_most_common_class_with_its_standard_error(counts: Counts, expected: tuple[float, float] | None) -> None:
    found = near_chance(counts)
    assert (found and (found.error, found.deviation)) == (expected and pytest.approx(expected, abs=5e-4))
