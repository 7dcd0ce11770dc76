"""What the relaxation of the knapsack leaves of a budget, filled by exchanges: of one branch, or of two at a time."""

import numpy as np

from search.budgets.options import Floats, Indices, Options
from search.budgets.relaxation import ROUNDING

# Options on either side of a branch's own, in the order of their costs, that exchanges of two branches look at.
_NEAR = 4


def exchange_one(options: Options, weights: Floats, errors: Floats, limits: Floats, chosen: Indices) -> None:
    """Take the option that saves most error per weight in place of its branch's, while one fits; changes `chosen`.

    Args:
        options: of the space.
        weights: of the options, [options].
        errors: of the options, [rows, options].
        limits: bounds on all costs, infinite where there is none, [rows, costs].
        chosen: an option of every branch, within the bounds, [rows, branches].
    """
    going = np.arange(len(chosen))
    bounded = np.flatnonzero(np.isfinite(limits).any(0))
    while len(going):
        now = chosen[going]
        saved = np.take_along_axis(errors, now, axis=1)[:, options.branch] - errors
        fits = saved > 0
        for cost in bounded:
            counted = options.costs[:, cost]
            slack = limits[going, cost] * ROUNDING - options.dense[cost] - counted[now].sum(1)
            fits &= counted <= (slack[:, None] + counted[now])[:, options.branch]
        paid = np.maximum(weights - weights[now][:, options.branch], 1e-12)
        rates = np.divide(saved, paid, out=np.full_like(saved, -np.inf), where=fits)
        best = rates.argmax(1)
        left = fits[np.arange(len(going)), best]
        going, best, errors = going[left], best[left], errors[left]
        chosen[going, options.branch[best]] = best


def exchange_two(options: Options, errors: Floats, bounds: Floats, chosen: Indices) -> None:
    """Take the two branches' options that save most error together, while two keep the bounds; changes `chosen`.

    Args:
        options: of the space.
        errors: of the options, [options].
        bounds: on all costs, infinite where there is none, [costs].
        chosen: an option of every branch, within the bounds, [branches].
    """
    curves = _Curves(options, (options.costs / bounds).sum(1), errors)
    bounded = np.flatnonzero(np.isfinite(bounds))
    while True:
        near = curves.near(errors[chosen])
        branch = options.branch[near]
        now = chosen[branch]
        saved = errors[now] - errors[near]
        saving = np.flatnonzero(saved > 0)  # one of the two does
        fits = branch[saving, None] != branch
        for cost in bounded:
            counted = options.costs[:, cost]
            paid = counted[near] - counted[now]
            slack = bounds[cost] * ROUNDING - options.dense[cost] - counted[chosen].sum()
            fits &= paid[saving, None] + paid <= slack
        gains = np.where(fits, saved[saving, None] + saved, 0.0)
        best = int(gains.argmax()) if gains.size else 0
        if not gains.size or gains.flat[best] <= 1e-12 * errors[chosen].sum():
            return
        first, second = np.unravel_index(best, gains.shape)
        for option in (near[saving[first]], near[second]):
            chosen[options.branch[option]] = option


class _Curves:
    """Every branch's options that no cheaper one beats, from the cheapest to the one of least error."""

    def __init__(self, options: Options, weights: Floats, errors: Floats) -> None:
        places = options.layout
        order = np.lexsort((errors[places], weights[places]))
        self._layout = np.take_along_axis(places, order, axis=1)
        self._losses = errors[self._layout]
        least = np.minimum.accumulate(self._losses, axis=1)
        self._on = np.concatenate([np.ones((len(least), 1), dtype=bool), least[:, 1:] < least[:, :-1]], axis=1)
        self._rank = self._on.cumsum(1) - 1

    def near(self, now: Floats) -> Indices:
        """The options next to an error of every branch, [branches], on either side."""
        place = (self._on & (self._losses > now[:, None])).sum(1)
        return self._layout[self._on & (np.abs(self._rank - place[:, None]) <= _NEAR)]  # type: ignore[no-any-return]
