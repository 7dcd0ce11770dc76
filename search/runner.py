"""Where trials run: one protocol for the process itself and, later, for workers on other devices."""

import json
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from objectives.evaluator import Evaluator, OnRung, OnStep
from objectives.finetune import Step
from objectives.recipes import evaluate_recipe
from objectives.score import Score
from search.trial import Proposal
from spaces.allocation import Allocation
from spaces.errors import CompressionError

WEIGHTS, METRICS, STDERR = "weights.safetensors", "metrics.jsonl", "stderr.log"


# Asked at a rung, in the process that tells the study: proposal, optimiser step, error there -> why to stop, or None.
AskRung = Callable[[Proposal, int, float], str | None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended: its score, the reason why it has none or was stopped, and the allocation that a recipe made."""

    number: int
    score: Score | None
    reason: str | None = None
    allocation: Allocation | None = None


class Runner(Protocol):
    """Runs trials; the study is told by the caller alone.

    `submit` takes a trial while fewer than `capacity` are running, `wait` returns one that has ended. A trial that
    raises is an outcome with a reason; only errors that concern every trial (`CompressionError`) are raised by `wait`.
    At a rung a trial waits for the answer to its error, which the caller gives (`AskRung`) while it is in `wait`.
    """

    capacity: int

    def submit(self, proposal: Proposal, folder: Path) -> None: ...

    def wait(self) -> Outcome: ...

    def close(self) -> None: ...


class InProcessRunner:
    """Runs one trial at a time, in this process, on the evaluator's device."""

    capacity = 1

    def __init__(
        self,
        evaluator: Evaluator,
        on_step: Callable[[int, Step], None] = lambda number, step: None,
        ask_rung: AskRung = lambda proposal, step, error: None,
    ) -> None:
        self._evaluator = evaluator
        self._on_step = on_step
        self._ask_rung = ask_rung
        self._submitted: list[tuple[Proposal, Path]] = []

    def submit(self, proposal: Proposal, folder: Path) -> None:
        self._submitted.append((proposal, folder))

    def wait(self) -> Outcome:
        proposal, folder = self._submitted.pop(0)
        return run_trial(self._evaluator, proposal, folder, lambda step: self._on_step(proposal.number, step), self._ask_rung)

    def close(self) -> None:
        self._submitted.clear()


def run_trial(evaluator: Evaluator, proposal: Proposal, folder: Path, on_step: OnStep, ask_rung: AskRung) -> Outcome:
    """Evaluate one proposal; leaves metrics.jsonl and, on success, weights.safetensors or, on failure, stderr.log."""
    folder.mkdir(parents=True, exist_ok=True)
    reason: str | None = None

    def on_rung(step: int, error: float) -> bool:
        nonlocal reason
        reason = ask_rung(proposal, step, error)
        return reason is not None

    try:
        with (folder / METRICS).open("w", encoding="utf-8") as metrics:

            def record(step: Step) -> None:
                metrics.write(json.dumps(asdict(step)) + "\n")
                on_step(step)

            score, allocation = _score(evaluator, proposal, record, on_rung, folder / WEIGHTS)
            metrics.write(json.dumps(asdict(score)) + "\n")
    except CompressionError:
        raise
    except Exception as error:  # whatever ends a trial is that trial's result, not the search's end
        (folder / STDERR).write_text(traceback.format_exc(), encoding="utf-8")
        return Outcome(
            number=proposal.number, score=None, reason=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        )
    return Outcome(number=proposal.number, score=score, reason=reason, allocation=allocation)


def _score(
    evaluator: Evaluator, proposal: Proposal, on_step: OnStep, on_rung: OnRung, weights: Path
) -> tuple[Score, Allocation]:
    if proposal.recipe is not None:  # trains otherwise than a candidate: its error at a rung could be compared with nothing
        return evaluate_recipe(evaluator, proposal.recipe, proposal.limits, proposal.seed, on_step, weights)
    assert proposal.allocation is not None
    return evaluator.evaluate(proposal.allocation, proposal.seed, on_step, weights, on_rung), proposal.allocation
