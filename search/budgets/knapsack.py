"""The allocation of least total error on a budget: a multiple-choice knapsack over the branches of a model.

Every branch offers options, one per combination of the sizes of one of its operators, each with a cost and an error; one option
of every branch is taken. Errors of sites are in one unit and taken to add up. Solved by the Lagrangian relaxation
(search/budgets/relaxation.py); what its last step leaves of the budget is then filled by exchanges, of one branch or of two at
a time (search/budgets/exchanges.py). Many budgets and errors are solved together, and none depends on the others.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from objectives.cost.closed_form import CostModel
from objectives.cost.spec import Cost
from objectives.dense_model import DenseModel
from objectives.profile import Errors
from objectives.sensitivity import closed_form
from search.budgets.exchanges import exchange_one, exchange_two
from search.budgets.frames import Frames, frames_of
from search.budgets.options import Floats, Indices, Options, costs_of, options_of, width_sites
from search.budgets.relaxation import relaxed, weightings
from search.config import StudyConfig
from spaces.allocation import Allocation
from spaces.errors import AllocationError
from spaces.sites import Space

_TOGETHER = 1 << 16  # options of all rows that are solved at a time: what fits the caches


class Knapsack:
    """Least-error allocations of one space, for any budget, inside frames.

    Args:
        space: what may be chosen; rival operators of a branch compete.
        costs: of this space.
        errors: site name -> size -> error.
        frames: schedules of tokens, and branches that are left out; by default what is free alone.

    Attributes:
        branches: how many the space has.
        sites: names of the sites that have widths or ranks, in the order of every array over sites.
        names: of the costs, in the order of every array over costs.
        frames: as given.
    """

    def __init__(self, space: Space, costs: CostModel, errors: Errors, frames: Frames | None = None) -> None:
        self.space = space
        self.sites = tuple(site.name for site in width_sites(space))
        self.names = costs.names
        self.frames = frames or Frames(schedules=(space.schedule(space.lossless()),))
        self._model, self._errors = costs, errors
        self._options = options_of(space, costs.within(self.frames.schedules[0]), errors)  # of the first schedule
        self._within: dict[int, tuple[Indices, Options]] = {}
        self._costs: dict[int, tuple[Floats, Floats]] = {}
        self.branches = len(self._options.starts)
        self._whole = np.array([site.dense for site in space.sites])
        self._columns = tuple(site.name for site in space.sites)

    def allocate(
        self, limits: Mapping[Cost, float], multipliers: Mapping[str, float] | None = None, frame: int = 0
    ) -> Allocation:
        """The allocation of least total error whose costs keep `limits`.

        Args:
            limits: upper bounds on costs that are known.
            multipliers: site name -> logarithm of a factor on its errors; 0 where it is not given.
            frame: that it is inside of.

        Raises:
            AllocationError: the smallest allocation is above a limit.
        """
        logarithms = np.array([[(multipliers or {}).get(name, 0.0) for name in self.sites]])
        return self.allocation(self.solve(limits, logarithms, np.ones(1), np.array([frame]))[0], frame)

    def solve(
        self, limits: Mapping[Cost, float], multipliers: Floats, shares: Floats, frames: Indices | None = None
    ) -> Indices:
        """Options of least total error, each row for itself, [rows, branches].

        Args:
            limits: upper bounds on costs that are known.
            multipliers: logarithms of factors on the sites' errors, [rows, sites].
            shares: of the limits that the budget of each row is, [rows].
            frames: that the rows are inside of, [rows]; frame 0 by default.

        Raises:
            AllocationError: the smallest allocation is above a limit.
        """
        bounds, found = self._bounds(limits), np.empty((len(shares), self.branches), dtype=int)
        for frame, rows in _by_frame(frames, len(shares)):
            numbers, options = self._inside(frame)
            chosen = self._choose(options, bounds, multipliers[rows], shares[rows, None])[:, 0]
            for row, share, taken in zip(multipliers[rows], shares[rows], chosen, strict=True):
                exchange_two(options, options.weighted(row[None])[0], share * bounds, taken)
            found[rows] = numbers[chosen]
        return found

    def choose(
        self, limits: Mapping[Cost, float], multipliers: Floats, shares: Floats, frames: Indices | None = None
    ) -> Indices:
        """Options of small total error for several budgets: as `solve`, without its last exchanges.

        Args:
            limits: upper bounds on costs that are known.
            multipliers: logarithms of factors on the sites' errors, [rows, sites].
            shares: of the limits that the budgets of each row are, [rows, budgets].
            frames: that the rows are inside of, [rows]; frame 0 by default.

        Returns:
            An option of every branch, [rows, budgets, branches].

        Raises:
            AllocationError: the smallest allocation is above a limit.
        """
        bounds, found = self._bounds(limits), np.empty((*shares.shape, self.branches), dtype=int)
        for frame, rows in _by_frame(frames, len(shares)):
            numbers, options = self._inside(frame)
            found[rows] = numbers[self._choose(options, bounds, multipliers[rows], shares[rows])]
        return found

    def _choose(self, options: Options, bounds: Floats, multipliers: Floats, shares: Floats) -> Indices:
        chosen = np.empty((*shares.shape, self.branches), dtype=int)
        for rows, ways in weightings(options, bounds, shares.min(1, initial=np.inf)):
            together = max(1, _TOGETHER // (len(options.branch) * shares.shape[1]))
            for part in np.split(rows, range(together, len(rows), together)):
                errors = options.weighted(multipliers[part])
                chosen[part] = self._best(options, ways, errors, shares[part, :, None] * bounds)
        return chosen

    def _inside(self, frame: int) -> tuple[Indices, Options]:
        """The options that a frame leaves, with their numbers among all."""
        if frame not in self._within:
            schedule, dropped = self.frames.parts(frame)
            order = list(self.space.branches)
            gone = np.isin(self._options.branch, [order.index(path) for path in self.frames.dropped[:dropped]])
            numbers = np.flatnonzero(gone == self._options.is_drop)
            self._within[frame] = numbers, self._options.within(numbers, *self._counted(schedule))
        return self._within[frame]

    def _counted(self, schedule: int) -> tuple[Floats, Floats]:
        """Costs of all options within a schedule, and with all branches dense."""
        if schedule not in self._costs:
            self._costs[schedule] = costs_of(self.space, self._model.within(self.frames.schedules[schedule]))
        return self._costs[schedule]

    def sizes(self, chosen: Indices) -> Indices:
        """Sizes of all sites of branches, [..., branches] -> [..., sites of branches]."""
        return self._whole + self._options.sizes[chosen].sum(-2)  # type: ignore[no-any-return]

    def features(self, chosen: Indices, frames: Indices | None = None) -> Floats:
        """Errors of all sites, and of the parts of frames that there is a choice of, before any multiplier.

        Args:
            chosen: [rows, branches].
            frames: [rows]; frame 0 by default.

        Returns:
            [rows, sites + parts].
        """
        parts = self.frames.features[np.zeros(len(chosen), dtype=int) if frames is None else frames]
        return np.concatenate([self._options.features[chosen].sum(-2), parts], axis=-1)

    def costs(self, chosen: Indices, frames: Indices | None = None) -> Floats:
        """All known costs, [rows, branches] and [rows] -> [rows, costs]; inside frame 0 by default."""
        found = np.empty((len(chosen), len(self.names)))
        for frame, rows in _by_frame(frames, len(chosen)):
            counted, dense = self._counted(self.frames.parts(frame)[0])
            found[rows] = dense + counted[chosen[rows]].sum(-2)
        return found

    def features_of(self, allocation: Allocation) -> Floats:
        """Errors of all sites, before any multiplier, [sites]."""
        return np.array([self._errors[name][allocation[name]] for name in self.sites])

    def allocation(self, chosen: Indices, frame: int = 0) -> Allocation:
        """One option of every branch, [branches], inside a frame, as an allocation."""
        sizes = dict(zip(self._columns, self.sizes(chosen).tolist(), strict=True))
        return Allocation({**sizes, **self.frames.sizes(self.space, frame)})

    def _bounds(self, limits: Mapping[Cost, float]) -> Floats:
        return np.array([limits.get(cost, np.inf) for cost in self.names], dtype=float)

    def _best(self, options: Options, ways: Sequence[Floats], errors: Floats, limits: Floats) -> Indices:
        """Optimal for one limit up to the last step of the hull; for several, the best of some ways to weigh them.

        Args:
            options: inside a frame.
            ways: weights of all options, [options] each.
            errors: of the options, [rows, options].
            limits: bounds on all costs, [rows, budgets, costs].
        """
        rows, budgets, _ = limits.shape
        each, found, lost = np.repeat(np.arange(rows), budgets), [], []
        for weights in ways:
            chosen, fits = relaxed(options, weights, errors, limits)
            kept, flat = np.flatnonzero(np.repeat(fits.all(1), budgets)), chosen.reshape(rows * budgets, -1)
            taken, repeated = flat[kept], errors[each[kept]]
            exchange_one(options, weights, repeated, limits.reshape(rows * budgets, -1)[kept], taken)
            flat[kept] = taken
            found.append(flat)
            lost.append(np.full(rows * budgets, np.inf))
            lost[-1][kept] = np.take_along_axis(repeated, taken, axis=1).sum(1)
        best = np.argmin(lost, axis=0)
        if not np.isfinite(np.min(lost, axis=0)).all():
            raise AllocationError(f"no allocation of space {self.space.name!r} keeps the budget {self._shown(limits)}")
        answers: Indices = np.array(found)[best, np.arange(rows * budgets)].reshape(rows, budgets, -1)
        return answers

    def _shown(self, limits: Floats) -> dict[Cost, float]:
        """The lowest of some budgets."""
        lowest = limits.reshape(-1, len(self.names)).min(0)
        return {cost: float(bound) for cost, bound in zip(self.names, lowest, strict=True) if np.isfinite(bound)}


def _by_frame(frames: Indices | None, rows: int) -> Iterator[tuple[int, Indices]]:
    """Every frame with its rows; all are in frame 0 where none are given."""
    given = np.zeros(rows, dtype=int) if frames is None else frames
    for frame in np.unique(given):
        yield int(frame), np.flatnonzero(given == frame)


def knapsack_of(dense: DenseModel, study: StudyConfig) -> Knapsack:
    """The one that a search decodes with.

    Args:
        dense: of the search.
        study: whether over the errors of the measured profile, else over the closed-form ones; and what it searches.
    """
    errors = dense.profile.errors if study.measured_profile else closed_form(dense.factors)
    return Knapsack(dense.space, dense.costs, errors, frames_of(dense.frames, errors, study.tokens, study.drop))
