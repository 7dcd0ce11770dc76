"""What the trials of a launch are: fixed from the start or proposed by the sampler, and whether few are left for that."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from search.trial import DENSE, DENSE_TAIL, WARM_START, Proposal

WIDTHS_ALONE = "widths alone"

_KINDS = ("dense reference", "warm start", "baseline", "recipe")

# Proposals for each target. The engine's sampler has after some twenty what Optuna's has after a hundred
# (benchmarks/results/searches_cpu_202611.md); with a handful it has hardly begun to learn.
_FEW, _ENOUGH = 8, 20


@dataclass(frozen=True, kw_only=True)
class Opening:
    """The trials of a run, as its launch begins.

    Attributes:
        wanted: in the run when it is done.
        fixed: those that need no sampler, in the order in which they run.
        proposed: those that the sampler has proposed in earlier launches.
        targets: budgets that are searched in turn.
        recipe: whether a recipe was asked for alone, and no search.
        confirming: the last trials, which are for repeats of those that cannot be told apart from the best.
    """

    wanted: int
    fixed: Sequence[Proposal]
    proposed: int
    targets: int
    recipe: bool = False
    confirming: int = 0

    @property
    def text(self) -> str:
        """How many there are of each kind."""
        counts = Counter(map(_kind, self.fixed[: max(self.wanted - self.proposed, 0)]))
        texts = [_counted(counts[kind], kind) for kind in _KINDS if counts[kind]]
        if not self.recipe:
            texts.append(_counted(self._proposals, "proposal") + " of the sampler")
        if self._repeats:
            texts.append(f"{self._repeats} to confirm what is best")
        return f"{_counted(self.wanted, 'trial')}: {', '.join(texts)}"

    @property
    def warning(self) -> str | None:
        """That few of the trials are left to search with, and how many to ask for; None where they are not."""
        if self.recipe or self._proposals >= _FEW * self.targets:
            return None
        fixed, enough = len(self.fixed), _ENOUGH * self.targets
        trials = fixed + enough if not self.confirming else -(-10 * (fixed + enough) // 9)
        left = f"{self._proposals or 'none'} of {self.wanted} {'is' if self._proposals < 2 else 'are'} left to search with"
        return f"{_counted(fixed, 'trial')} are fixed before a search begins, {left}: --trials {trials} leaves {enough}"

    def tell(self, say: Callable[[str], None], notice: Callable[[str], None]) -> None:
        """Say what they are, and that few are left where they are."""
        say(self.text)
        if self.warning is not None:
            notice(self.warning)

    @property
    def _proposals(self) -> int:
        return max(self.wanted - len(self.fixed) - self._repeats, self.proposed)

    @property
    def _repeats(self) -> int:
        """Trials for confirming: none of those that run before a search begins."""
        return max(min(self.confirming, self.wanted - len(self.fixed) - self.proposed), 0)


def opening_of(proposals: Sequence[Proposal], wanted: int, targets: int, recipe: bool, confirming: int = 0) -> Opening:
    """The trials of a run from those that are finished, running or waiting, in their order."""
    fixed = [proposal for proposal in proposals if proposal.label is not None and proposal.repeats is None]
    proposed = sum(proposal.label is None for proposal in proposals)
    return Opening(
        wanted=wanted, fixed=fixed, proposed=proposed, targets=targets, recipe=recipe, confirming=confirming
    )  # fmt: skip


def _kind(proposal: Proposal) -> str:
    if proposal.label in (DENSE, DENSE_TAIL):
        return "dense reference"
    if proposal.label in (WARM_START, WIDTHS_ALONE):
        return "warm start"
    return "baseline" if proposal.recipe is None else "recipe"


def _counted(count: int, name: str) -> str:
    return f"{count} {name}" + ("" if count == 1 else "s")
