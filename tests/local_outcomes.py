"""Searches of made-up problems whose trials leave what they made of every image."""

from pathlib import Path

import numpy as np
import torch
from local_problems import Problem
from local_searches import opened
from scipy.special import ndtr

from objectives.outcomes import Outcomes
from search.evidence.gathered import Gathered
from search.layout import outcomes_of
from search.study.ending import Ending
from search.study.study import Study
from search.trial import DENSE, Outcome, Proposal, Screening
from spaces.allocation import Allocation

LEVEL = 0.05  # error of the dense model


def outcomes(error: float, kl: float, seed: int, images: int) -> Outcomes:
    """Of a model: most of what makes an image hard is the same for all models."""
    shared, own = np.random.default_rng(99).standard_normal((2, images)), np.random.default_rng(seed)
    hard = ndtr(np.sqrt(0.8) * shared[0] + np.sqrt(0.2) * own.standard_normal(images)) < error
    divergences = kl * np.exp(0.5 * shared[1] - 0.125)
    return Outcomes(torch.from_numpy(hard), torch.from_numpy(divergences), torch.from_numpy(divergences))


class Searched:
    """A search of a problem whose trials are told at once.

    Args:
        directory: of the run.
        ending: of the search.
        problem: whose distortion is the divergence; errors grow with it.
        luck: of seeds: standard deviation of the error as a share of the divergence.
        images: of the search split.
    """

    def __init__(
        self,
        directory: Path,
        ending: Ending | None,
        problem: Problem,
        luck: float = 0.2,
        images: int = 2000,
        screening: bool = True,
    ) -> None:
        self.problem, self.luck, self.images = problem, luck, images
        gathered = Gathered(directory, outcomes(LEVEL, 0.0, 0, images), 1000)
        self.study = opened(
            Study(
                directory, problem.parametrisation, ("error", "macs"), "additive", 0, screening,
                gathered=gathered, ending=ending,
            )
        )  # fmt: skip
        self.study.enqueue(DENSE, problem.space.identity())
        for start in problem.starts:
            self.study.enqueue("warm start", problem.parametrisation.decode(start), start)

    def ask(self) -> Proposal | None:
        found = self.study.ask()
        while isinstance(found, Screening):
            divergences = [self.problem.divergence(entry) for entry in found.candidates]
            found = self.study.choose(found.number, divergences)
        return found

    def tell(self, proposal: Proposal) -> None:
        assert proposal.allocation is not None
        folder = outcomes_of(self.study.directory, proposal.number)
        divergence = 0.3 * self.problem.distortion(proposal.allocation)
        error = LEVEL + (0.4 + self.luck * self._deviation(proposal.allocation, proposal.seed)) * divergence
        made = outcomes(error, divergence, 1 + proposal.number, self.images)
        made.save(folder)
        score = self.problem.score(proposal.allocation)
        measured = float(made.wrong.float().mean())
        self.study.tell(Outcome(number=proposal.number, score=type(score)(**{**vars(score), "error": measured})))

    def run(self, trials: int) -> None:
        """So many trials, or fewer where the search is over."""
        while len(self.study.trials) < self.study.wanted(trials):
            proposal = self.ask()
            if proposal is None:
                return
            self.tell(proposal)

    @property
    def history(self) -> list[tuple[int, Allocation | None, int, str | None]]:
        found = [trial.proposal for trial in self.study.trials]
        return [(entry.number, entry.allocation, entry.seed, entry.label) for entry in found]

    def _deviation(self, allocation: Allocation, seed: int) -> float:
        sizes = list(allocation.values())
        return float(np.random.default_rng([seed, *sizes]).standard_normal())
