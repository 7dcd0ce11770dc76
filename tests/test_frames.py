"""Frames: schedules of tokens and branches that are left out, inside which widths are chosen."""

import itertools
from collections.abc import Mapping
from functools import partial

import numpy as np
import optuna
import pytest
from local_searches import BRANCH

from objectives.cost.closed_form import CostModel
from objectives.frames import MeasuredFrames
from search.budgets.frames import DROPPED, SCHEDULE, Frames, frames_of
from search.budgets.knapsack import Knapsack
from search.budgets.parametrisation import BUDGET, Budgets, Multipliers, Sizes
from search.samplers.additive import AdditiveSampler
from search.samplers.registry import SAMPLERS, create_sampler
from spaces.allocation import Allocation
from spaces.sites import DROP, Operator, Site, Space

BLOCKS, PATCHES = 3, 8
SCHEDULES = ((8, 8, 0), (8, 6, 0), (6, 4, 0), (4, 2, 0))
MEASURED = MeasuredFrames(
    schedules=dict(zip(SCHEDULES, (0.0, 0.02, 0.1, 0.5), strict=True)),
    dropped={"blocks.1.attn": 0.05, "blocks.2.attn": 0.3},
    images=16,
)  # fmt: skip


def space_of() -> Space:
    """Three blocks of a branch with widths from 1 to 8, which may also be left out."""
    branches = {}
    for block in range(BLOCKS):
        path = f"blocks.{block}.attn"
        width = Site(name=f"{path}.hidden", branch=path, kind="ffn_hidden", choices=tuple(range(1, 9)))
        gone = Site(name=f"{path}.branch", branch=path, kind="branch", choices=(0, 1))
        branches[path] = (Operator(name="cut", sites=(width,)), Operator(name=DROP, sites=(gone,)))
    tokens = tuple(
        Site(
            name=f"blocks.{block}.tokens",
            branch=f"blocks.{block}",
            kind="tokens",
            choices=(0, *range(1, 9)) if block == BLOCKS - 1 else tuple(range(1, 9)),
        )
        for block in range(BLOCKS)
    )
    return Space(name="test", branches=branches, tokens=tokens)


def costs_within(space: Space, schedule: tuple[int, ...]) -> CostModel:
    """A branch costs in proportion to its width and to the tokens that leave its block; one, where none do."""
    tokens = dict(zip(space.branches, (max(count, 1) for count in schedule), strict=True))

    def count(path: str, sizes: Mapping[str, int]) -> tuple[int, int]:
        share = sizes["hidden"] / 8 if "hidden" in sizes else sizes["branch"]
        return round(BRANCH * share * tokens[path] / PATCHES), round(BRANCH * share)

    operators = tuple((operator, partial(count, path)) for path, rivals in space.branches.items() for operator in rivals)
    whole = {"macs": sum(BRANCH * tokens[path] / PATCHES for path in space.branches), "params": BRANCH * BLOCKS}
    dense = {"macs": BRANCH * BLOCKS, "params": BRANCH * BLOCKS}
    names = tuple(site.name for site in space.tokens)
    return CostModel(dense, operators, whole, schedule, names, partial(costs_within, space))  # type: ignore[arg-type]


def errors_of(space: Space) -> dict[str, dict[int, float]]:
    sites = (site for site in space.sites if site.kind != "branch")
    return {site.name: {size: (1 + int(site.branch[7])) * (1 - size / 8) ** 2 for size in site.choices} for site in sites}


def multipliers_of(frames: Frames | None = None, low: float = 0.5) -> Multipliers:
    space = space_of()
    costs = costs_within(space, space.schedule(space.identity()))
    knapsack = Knapsack(space, costs, errors_of(space), frames or frames_of(MEASURED, {}))
    return Multipliers(Budgets(space, costs, [{"macs": 0.4 * BRANCH * BLOCKS}], [low]), knapsack)


def total(ours: Multipliers, allocation: Allocation) -> float:
    """What the profile expects an allocation to lose, slowly."""
    space, frames = ours.budgets.space, ours.knapsack.frames
    gone = [path for path in space.branches if allocation[f"{path}.branch"] == 0]
    lost = 0.0 if not gone else MEASURED.dropped[frames.dropped[len(gone) - 1]]
    widths = sum(table[allocation[name]] for name, table in errors_of(space).items())
    return lost + MEASURED.schedules[space.schedule(allocation)] + widths


def everything(ours: Multipliers) -> list[Allocation]:
    """Every allocation of all frames."""
    found, space = [], ours.budgets.space
    for frame in range(len(ours.knapsack.frames)):
        base = ours.knapsack.frames.base(space, frame)
        paths = [path for path in space.branches if base[f"{path}.branch"]]
        for sizes in itertools.product(range(1, 9), repeat=len(paths)):
            found.append(base.replace({f"{path}.hidden": size for path, size in zip(paths, sizes, strict=True)}))
    return found


@pytest.mark.parametrize("load", [0.5, 0.65, 0.8, 1.0])
def test_the_start_is_the_best_pair_of_a_frame_and_widths(load: float) -> None:
    """Against all allocations: up to what one step of a width leaves of the budget."""
    ours = multipliers_of()
    found = ours.decode(ours.encode(0, load))
    ours.budgets.space.validate(found)
    assert ours.budgets.load(found) <= load * (1 + 1e-9)
    losses = {entry: total(ours, entry) for entry in everything(ours) if ours.budgets.load(entry) <= load}
    assert total(ours, found) <= 1.1 * min(losses.values())
    alone = ours.decode(ours.encode(0, load, frame=0))
    assert ours.budgets.space.schedule(alone) == SCHEDULES[0]
    assert total(ours, found) < total(ours, alone)


def test_every_frame_is_an_allocation_of_the_space_with_the_costs_that_the_cost_model_gives_it() -> None:
    ours, rng = multipliers_of(low=0.2), np.random.default_rng(0)
    frames = ours.knapsack.frames
    assert len(frames) == 4 * 3
    parameters = [ours.name(0, rng.uniform(0.2, 1.0), rng.normal(0, 0.5, BLOCKS), frame) for frame in range(len(frames))]
    decoded = ours.decoded(parameters)
    for frame, (entry, allocation) in enumerate(zip(parameters, ours.allocations(parameters), strict=True)):
        ours.budgets.space.validate(allocation)
        schedule, dropped = frames.parts(frame)
        assert (entry[SCHEDULE], entry[DROPPED]) == (schedule, dropped)
        assert frames.of(entry) == frame
        assert ours.budgets.space.schedule(allocation) == SCHEDULES[schedule]
        gone = [path for path in ours.budgets.space.branches if allocation[f"{path}.branch"] == 0]
        assert set(gone) == set(list(MEASURED.dropped)[:dropped])
        assert decoded.loads[frame, 0] == pytest.approx(ours.budgets.load(allocation))
        assert decoded.loads[frame, 0] <= entry[BUDGET] * (1 + 1e-9)
        parts = decoded.features[frame, BLOCKS:]
        assert parts == pytest.approx([list(MEASURED.schedules.values())[schedule], [0, 0.05, 0.3][dropped]])
        assert decoded.features[frame].sum() == pytest.approx(total(ours, allocation))


def test_rows_of_several_frames_are_solved_as_each_alone() -> None:
    ours, rng = multipliers_of(low=0.3), np.random.default_rng(1)
    frames = rng.integers(0, len(ours.knapsack.frames), 20)
    multipliers, shares = rng.normal(0, 1, (20, BLOCKS)), rng.uniform(0.3, 1.0, 20)
    limits = ours.budgets.targets[0]
    together = ours.knapsack.solve(limits, multipliers, shares, frames)
    for row in range(20):
        alone = ours.knapsack.solve(limits, multipliers[row : row + 1], shares[row : row + 1], frames[row : row + 1])
        assert (alone[0] == together[row]).all()


def test_without_frames_nothing_is_sampled_of_them() -> None:
    ours = multipliers_of(frames_of(MEASURED, {}, tokens=False, drop=False))
    assert set(ours.distributions) == {BUDGET, *ours.knapsack.sites}
    found = ours.decode(ours.encode(0, 1.0))
    assert found == ours.decode(ours.encode(0, 1.0, frame=0))
    assert ours.budgets.space.schedule(found) == SCHEDULES[0]
    assert set(multipliers_of(frames_of(MEASURED, {}, drop=False)).distributions) == {BUDGET, *ours.knapsack.sites, SCHEDULE}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_proposes_frames_within_the_budget(sampler: str) -> None:
    ours, study = multipliers_of(), optuna.create_study(directions=["minimize"] * 2)
    seen = set()
    for number in range(12):
        study.sampler = create_sampler(sampler, number, ours)
        trial = study.ask(ours.distributions)
        allocation = ours.decode(trial.params)
        ours.budgets.space.validate(allocation)
        assert ours.budgets.load(allocation) <= 1 + 1e-9
        seen.add(ours.knapsack.frames.of(trial.params))
        study.tell(trial, [1 - np.exp(-total(ours, allocation)), ours.budgets.load(allocation)])
    assert len(seen) > 1


def test_sizes_keep_the_frame_that_was_sampled() -> None:
    multipliers = multipliers_of()
    ours = Sizes(multipliers.budgets, multipliers.knapsack)
    found = ours.decode(ours.encode(0, 1.0))
    assert found == multipliers.decode(multipliers.encode(0, 1.0))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(20):
        trial = study.ask(ours.distributions)
        allocation = ours.decode(trial.params)
        ours.budgets.space.validate(allocation)
        assert ours.budgets.load(allocation) <= 1 + 1e-9
        assert ours.budgets.space.schedule(allocation) == SCHEDULES[trial.params[SCHEDULE]]


@pytest.mark.parametrize("wrong", [0.05, 6.0])
def test_a_search_finds_out_that_tokens_cost_more_or_less_than_their_profile_says(wrong: float) -> None:
    """Where merging costs `wrong` times what was measured, the start has the wrong frame; the search gains on it."""
    ours = multipliers_of(frames_of(MEASURED, {}, drop=False))

    def error(allocation: Allocation) -> float:
        merged = MEASURED.schedules[ours.budgets.space.schedule(allocation)]
        return float(1 - 0.9 * np.exp(-(total(ours, allocation) + (wrong - 1) * merged)))

    start = error(ours.decode(ours.encode(0, 1.0)))
    best = min(error(entry) for entry in everything(ours) if ours.budgets.load(entry) <= 1)
    assert start > 1.02 * best, "there is something to find"
    found = []
    for seed in range(3):
        study = optuna.create_study(directions=["minimize"] * 2)
        for load in (1.0, 0.75, 0.5):
            study.enqueue_trial(ours.encode(0, load))
        errors = []
        for number in range(24):
            study.sampler = AdditiveSampler(ours, 100 * seed + number)
            trial = study.ask(ours.distributions)
            allocation = ours.decode(trial.params)
            errors.append(error(allocation))
            study.tell(trial, [errors[-1], ours.budgets.load(allocation)])
        found.append(min(errors))
    assert np.mean(found) < best + 0.3 * (start - best)
