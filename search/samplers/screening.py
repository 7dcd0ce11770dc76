"""What a sampler must have so that the study has candidates screened before it proposes one of them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from optuna.study import Study

from spaces.allocation import Allocation

Parameters = Mapping[str, Any]
Measured = list[tuple[Parameters, float]]  # parameters of candidates, and their divergences in nats

# User attribute of a finished trial: holds kl_before, what screening would have measured (near it with --measure-before).
SCORE = "score"


class Candidates(Protocol):
    """Candidates for one trial to be; what is learnt later does not change them."""

    @property
    def candidates(self) -> tuple[Allocation, ...]:
        """What is worth to be screened, the most promising one first."""
        ...

    @property
    def target(self) -> int:
        """Index of the target that they are for."""
        ...

    @property
    def gain(self) -> float:
        """By how much the most promising one should lower the front: the expected error, averaged over the target's band."""
        ...

    def best(self) -> Parameters:
        """Parameters of the one to take if nothing is measured."""
        ...

    def choose(self, divergences: Sequence[float]) -> dict[str, Any]:
        """Parameters of the one to take.

        Args:
            divergences: of `candidates` as built, in nats; one that is not finite was not measured.
        """
        ...

    def measured(self, divergences: Sequence[float]) -> Measured:
        """Parameters and divergences of the candidates that were measured: kept with the trial, for draws to come."""
        ...


@runtime_checkable
class ScreeningSampler(Protocol):
    """A sampler of Optuna's kind that can say what it would have screened."""

    @property
    def drawn(self) -> Candidates | None:
        """The candidates that it drew last; None before."""
        ...

    def draw(
        self,
        study: Study,
        pending: Sequence[Parameters] = (),
        skipped: int = 0,
        errors: Mapping[int, float] | None = None,
    ) -> Candidates | None:
        """Candidates for the next trial; None where it proposes one at once.

        Args:
            study: of the trials so far.
            pending: what trials to be are expected to become, whose candidates are being screened.
            skipped: draws for the same trial that came to nothing.
            errors: number of a trial -> the error that is expected of it, in place of the one that was measured.
        """
        ...
