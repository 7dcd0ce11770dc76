"""Made-up spaces, and searches on them whose candidates cost nothing to evaluate."""

from collections.abc import Callable, Mapping, Sequence

from objectives.cost.closed_form import CostModel
from objectives.cost.spec import Cost
from objectives.profile import Errors
from objectives.score import Score
from search.budgets.knapsack import Knapsack
from search.budgets.parametrisation import Budgets, Multipliers
from search.study.study import Study
from search.trial import Proposal, Screening
from spaces.allocation import Allocation
from spaces.sites import Operator, Site, Space

COARSE = tuple(range(8, 129, 8)), (8, 16, 24, 128)  # widths, and ranks of linears of 128 x 128
FINE = tuple(range(1, 65)), (*range(1, 64), 128)  # in both a step is a 64th of a branch
BRANCH = 1000  # what a dense branch costs, MACs and parameters alike


def space_of(rivals: bool = False, branches: int = 4, sizes: Sequence[tuple[int, ...]] = COARSE) -> Space:
    """Branches b0, b1, ... with a width each, and with a rank instead where there are rivals."""
    widths, ranks = sizes
    offered = {}
    for i in range(branches):
        hidden = Site(name=f"b{i}.hidden", branch=f"b{i}", kind="ffn_hidden", choices=widths)
        rank = Site(name=f"b{i}.fc1", branch=f"b{i}", kind="rank", choices=ranks, linear=(ranks[-1], ranks[-1]))
        operators = (Operator(name="neurons", sites=(hidden,)), Operator(name="low-rank", sites=(rank,)))
        offered[f"b{i}"] = operators if rivals else operators[:1]
    return Space(name="test", branches=offered)


def costs_of(space: Space) -> CostModel:
    """Every branch costs `BRANCH` when dense, whatever its operator, and in proportion to what it keeps."""

    def cost_of(operator: Operator) -> Callable[[Mapping[str, int]], tuple[int, int]]:
        (site,) = operator.sites
        return lambda sizes: (round(BRANCH * site.share(sizes[site.part])),) * 2

    operators = tuple((operator, cost_of(operator)) for rivals in space.branches.values() for operator in rivals)
    dense = BRANCH * len(space.branches)
    return CostModel({"macs": dense, "params": dense}, operators)


def errors_of(space: Space) -> Errors:
    """As much as is gone of a site, squared."""
    return {site.name: {size: (1 - site.share(size)) ** 2 for size in site.choices} for site in space.sites}


def searched(
    space: Space, targets: Sequence[Mapping[Cost, float]], lows: Sequence[float], errors: Errors | None = None
) -> Multipliers:
    """A search of a space, by multipliers on `errors`."""
    costs = costs_of(space)
    return Multipliers(Budgets(space, costs, targets, lows), Knapsack(space, costs, errors or errors_of(space)))


def score_of(allocation: Allocation | None) -> Score:
    """A made-up error: branch 0 matters most."""
    assert allocation is not None, "of a recipe that has not run"
    error = sum((4 - index) * (1 - size / 128) for index, size in enumerate(allocation.values())) / 20
    return scored(error, sum(allocation.values()))


def scored(error: float, macs: int, divergence: float = 0.0) -> Score:
    """The score of a candidate of this error, MACs, and divergence before the fine-tune."""
    return Score(
        error=error,
        error_before=error,
        kl=0.0,
        kl_before=divergence,
        costs={"macs": macs, "params": macs},
        steps=10,
        seconds=0.1,
    )


def proposed(study: Study) -> Proposal:
    """The next trial of a study that screens no candidates."""
    found = study.ask()
    assert isinstance(found, Proposal)
    return found


def asked(study: Study) -> Proposal:
    """The next trial; where candidates are screened for it, the larger one diverges less."""
    found = study.ask()
    while isinstance(found, Screening):
        found = study.choose(found.number, [1 / sum(candidate.values()) for candidate in found.candidates])
    assert found is not None
    return found


_OPENED: list[Study] = []


def opened(study: Study) -> Study:
    """The study, which is closed when the test ends."""
    _OPENED.append(study)
    return study


def close_opened() -> None:
    while _OPENED:
        _OPENED.pop().close()
