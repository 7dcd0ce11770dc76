"""Search problems whose truth is known, and searches of them with Optuna alone."""

from collections.abc import Mapping, Sequence

import numpy as np
import optuna
from local_searches import BRANCH, FINE, scored, searched, space_of

from objectives.cost.spec import Cost
from objectives.score import Score
from search.pareto import hypervolume
from search.samplers.additive import AdditiveSampler, Screen
from search.samplers.registry import create_sampler
from search.samplers.screening import SCORE
from spaces.allocation import Allocation
from spaces.sites import Space

# Of the branches, by the profile.
WORTH = (0.3, 0.1, 0.5, 0.4, 0.2, 0.3)


class Problem:
    """Six branches whose distortions add up; that of one branch is a multiple of what the profile says.

    Args:
        factor: of the first branch's distortion over its profile.
        hated: what the divergence adds where the fifth branch is cut; it tells nothing of the error.
        shares: of the MACs, a target each.
        low: lower end of all bands.
        sizes: widths and ranks on offer.
    """

    def __init__(
        self,
        factor: float = 5.0,
        hated: float = 0.0,
        shares: Sequence[float] = (0.5,),
        low: float = 0.5,
        rivals: bool = False,
        sizes: Sequence[tuple[int, ...]] = FINE,
    ) -> None:
        self.hated = hated
        self.space: Space = space_of(rivals, len(WORTH), sizes)
        profile = {
            site.name: {size: WORTH[int(site.branch[1:])] * (1 - site.share(size)) ** 2 for size in site.choices}
            for site in self.space.sites
        }
        targets: list[Mapping[Cost, float]] = [{"macs": share * BRANCH * len(WORTH)} for share in shares]
        self.parametrisation = searched(self.space, targets, [low] * len(shares), profile)
        self.truth = {
            name: {size: (factor if name.startswith("b0.") else 1.0) * error for size, error in errors.items()}
            for name, errors in profile.items()
        }

    def distortion(self, allocation: Allocation) -> float:
        return sum(self.truth[name][size] for name, size in allocation.items())

    def divergence(self, allocation: Allocation) -> float:
        return self.distortion(allocation) + self.hated * (1 - allocation["b4.hidden"] / 64)

    def error(self, allocation: Allocation) -> float:
        return 1 - 0.95 * float(np.exp(-self.distortion(allocation)))

    def load(self, allocation: Allocation, target: int = 0) -> float:
        return self.parametrisation.budgets.load(allocation, target)

    def score(self, allocation: Allocation) -> Score:
        macs = round(self.parametrisation.budgets.costs.count(allocation, "macs"))
        return scored(self.error(allocation), macs, self.divergence(allocation))

    @property
    def starts(self) -> list[dict[str, float]]:
        """Of every target, what the profile alone chooses on three loads."""
        targets, low = range(len(self.parametrisation.budgets.targets)), self.parametrisation.budgets.lows[0]
        return [self.parametrisation.encode(target, load) for target in targets for load in (1.0, (1 + low) / 2, low)]

    def ask(self, study: optuna.Study, seed: int, sampler: str = "additive", screen: Screen | None = None) -> Allocation:
        """The next proposal; its trial goes on running."""
        ours = self.parametrisation
        study.sampler = AdditiveSampler(ours, seed, screen) if screen else create_sampler(sampler, seed, ours)
        return self.parametrisation.decode(study.ask(self.parametrisation.distributions).params)

    def tell(self, study: optuna.Study, allocation: Allocation, noise: float = 0.0) -> None:
        """Finish the last trial."""
        trial = study.trials[-1]
        score = {"kl_before": self.divergence(allocation)}
        study._storage.set_trial_user_attr(trial._trial_id, SCORE, score)
        study.tell(trial.number, [self.error(allocation) + noise, self.load(allocation)])

    def run(
        self, trials: int, seed: int = 0, sampler: str = "additive", screen: Screen | None = None, noise: float = 0.0
    ) -> tuple[optuna.Study, list[Allocation]]:
        """A search of so many trials: three of every target's start, and what is proposed then."""
        study, rng, found = optuna.create_study(directions=["minimize"] * 2), np.random.default_rng(seed), []
        for number in range(trials):
            if number < len(self.starts):
                study.enqueue_trial(self.starts[number])
            found.append(self.ask(study, 1000 * seed + number, sampler, screen))
            self.tell(study, found[-1], noise * rng.standard_normal())
        return study, found

    def volume(self, allocations: Sequence[Allocation]) -> float:
        return hypervolume([(self.load(entry), self.error(entry)) for entry in allocations], (1.0, 0.9))
