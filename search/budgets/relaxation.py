"""The Lagrangian relaxation of the knapsack, for many errors and budgets at once.

On the lower convex hull of a branch's options the error saved per cost falls from step to step, so taking all branches' steps
in the order of that slope gives the optimum of every budget that it passes.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from search.budgets.options import Floats, Indices, Options

ROUNDING = 1 + 1e-12  # of costs that are exactly on a bound
_EMPHASISED = 20  # times that a bound may get more weight
_LESS = 0.1  # weight of the others where one bound weighs most


def relaxed(options: Options, weights: Floats, errors: Floats, limits: Floats) -> tuple[Indices, NDArray[np.bool_]]:
    """The options before the first step that would exceed a budget, and whether the cheapest ones keep it.

    Args:
        options: of the space.
        weights: of the options: what is taken to be their cost, [options].
        errors: of the options, [rows, options].
        limits: of every budget, the bounds on all costs, infinite where there is none, [rows, budgets, costs].

    Returns:
        An option of every branch, [rows, budgets, branches]; and [rows, budgets].
    """
    vertices, slopes = _hulls(options, weights, errors)
    rows, branches, steps = slopes.shape
    order = np.argsort(-slopes.reshape(rows, -1), axis=1, kind="stable")
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.arange(branches * steps)[None], axis=1)
    exceeded = np.zeros((rows, limits.shape[1], branches * steps + 1), dtype=bool)
    for cost in np.flatnonzero(np.isfinite(limits).any((0, 1))):
        counted = options.costs[:, cost][vertices]
        paid = np.take_along_axis(np.diff(counted, axis=2).reshape(rows, -1), order, axis=1)
        totals = np.cumsum(np.concatenate([np.zeros((rows, 1)), paid], axis=1), axis=1)
        totals += options.dense[cost] + counted[:, :, 0].sum(1)[:, None]
        exceeded |= totals[:, None] > limits[:, :, cost, None] * ROUNDING
    taken = np.where(exceeded.any(2), exceeded.argmax(2) - 1, branches * steps)
    passed = (place.reshape(rows, 1, branches, steps) < taken[:, :, None, None]).sum(3)
    return np.take_along_axis(vertices[:, None], passed[..., None], axis=3)[..., 0], ~exceeded[:, :, 0]


def _hulls(options: Options, weights: Floats, errors: Floats) -> tuple[Indices, Floats]:
    """The options on the hulls, and the error that each step along them saves per weight.

    From the cheapest option to the one of least error, each the farthest of those that the steepest line leads to.

    Returns:
        Options, the last one repeated where other hulls have more, [rows, branches, steps + 1]; and slopes, -inf in place of
        those steps, [rows, branches, steps].
    """
    layout = np.take_along_axis(
        options.layout, np.argsort(-weights[options.layout], axis=1, kind="stable"), axis=1
    )  # the dearest first: of equal slopes the first one is taken
    rows, (branches, most) = len(errors), layout.shape
    costs, losses = weights[layout], errors[:, layout]
    cheapest = np.where(costs == costs.min(1, keepdims=True), losses, np.inf).argmin(2).ravel()
    costs, losses = np.tile(costs, (rows, 1)), losses.reshape(-1, most)
    vertices, slopes = [cheapest], list[Floats]()
    going, now = np.arange(rows * branches), cheapest
    while True:
        each = np.arange(len(going))
        saved, paid = losses[each, now][:, None] - losses, costs - costs[each, now][:, None]
        better = (saved > 0) & (paid > 0)
        steep = np.divide(saved, paid, out=np.zeros_like(saved), where=better)
        now = steep.argmax(1)
        slope = steep[each, now]
        left = slope > 0
        going, now, costs, losses = going[left], now[left], costs[left], losses[left]
        if not len(going):
            break
        vertices.append(vertices[-1].copy())
        vertices[-1][going] = now
        slopes.append(np.full(rows * branches, -np.inf))
        slopes[-1][going] = slope[left]
    places = np.stack(vertices, axis=1).reshape(rows, branches, -1)
    steps = np.stack(slopes, axis=1) if slopes else np.zeros((rows * branches, 0))
    return layout[np.arange(branches)[:, None], places], steps.reshape(rows, branches, -1)


def weightings(options: Options, bounds: Floats, shares: Floats) -> list[tuple[Indices, list[Floats]]]:
    """Ways to make one figure of every option's costs: as shares of their bounds all alike, then each more than the others.

    Where the cheapest options would not keep a share of all bounds, those that they miss weigh more.

    Args:
        options: of the space.
        bounds: on the costs, infinite where there is none, [costs].
        shares: of the bounds that are to be kept, [rows].

    Returns:
        Rows that have the same ways, and these: weights of all options, [options].
    """
    bounded, ways = np.flatnonzero(np.isfinite(bounds)), []
    for emphasis, rows in _emphases(options, bounds, shares):
        found = [(emphasis * options.costs / bounds).sum(1)]
        for first in bounded if len(bounded) > 1 else ():  # the others may not bind
            unlike = np.where(np.arange(len(bounds)) == first, emphasis, _LESS * emphasis)
            found.append((unlike * options.costs / bounds).sum(1))
        ways.append((rows, found))
    return ways


def _emphases(options: Options, bounds: Floats, shares: Floats) -> Iterator[tuple[Floats, Indices]]:
    """How much more every bound weighs, [costs], and the rows that this is for."""
    ends = np.append(options.starts[1:], len(options.branch))
    waiting = [(np.ones(len(bounds)), np.arange(len(shares)), 0)]
    while waiting:
        emphasis, rows, times = waiting.pop()
        weights = (emphasis * options.costs / bounds).sum(1)
        least = [start + weights[start:end].argmin() for start, end in zip(options.starts, ends, strict=True)]
        over = options.dense + options.costs[least].sum(0) > shares[rows, None] * bounds * ROUNDING
        for missed in np.unique(over, axis=0):
            same = rows[(over == missed).all(1)]
            if times == _EMPHASISED or not missed.any():
                yield emphasis, same
            else:
                waiting.append((np.where(missed, 1.3 * emphasis, emphasis), same, times + 1))
