"""One job of a worker: a trial evaluated, candidates screened, or a learning rate probed. Whatever ends it is its result."""

import json
import math
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Literal

from objectives.dense_model import DenseModel
from objectives.evaluator import Evaluator, OnRung, OnStep
from objectives.recipes.registry import evaluate_recipe
from objectives.runtime.distributed import ALONE, Group
from objectives.runtime.out_of_memory import is_out_of_memory
from objectives.runtime.progress import Step
from objectives.score import AsBuilt, Score
from objectives.training.rate import RATE
from search.layout import CHECKPOINT, METRICS, OUTCOMES, STDERR, WEIGHTS
from search.trial import Ended, Job, Outcome, Probe, Probed, Proposal, Screened, Screening
from spaces.allocation import Allocation
from spaces.errors import CompressionError, RunError
from spaces.files import cut_torn_line

# What trials of a search use, besides the dense model's figures.
Need = Literal["latency", "factors", "profile", "frames", "batches"]


RATE_SECONDS = 120.0  # a network disk may show a new file only after a minute

# Asked at a rung, in the process that tells the study: proposal, optimiser step, error there -> why to stop, or None.
AskRung = Callable[[Proposal, int, float], str | None]


def run_job(evaluator: Evaluator, job: Job, folder: Path, on_step: OnStep, ask_rung: AskRung) -> Ended:
    """Run a job in this process.

    Raises:
        CompressionError: what concerns every trial.
    """
    if isinstance(job, Screening):
        found = screen(evaluator, job.candidates)
        divergences, changed = tuple(each.divergence for each in found), tuple(each.changed for each in found)
        return Screened(number=job.number, divergences=divergences, changed=changed)
    if isinstance(job, Probe):
        return Probed(number=job.number, kl=probe(evaluator, job))
    return run_trial(evaluator, job, folder, on_step, ask_rung)


def run_trial(evaluator: Evaluator, proposal: Proposal, folder: Path, on_step: OnStep, ask_rung: AskRung) -> Outcome:
    """Evaluate one proposal; leaves metrics.jsonl and, on success, weights.safetensors or, on failure, stderr.log.

    Raises:
        CompressionError: what concerns every trial.
    """
    reason: str | None = None

    def on_rung(step: int, error: float) -> bool:
        nonlocal reason
        reason = ask_rung(proposal, step, error)
        return reason is not None

    wait_for_rate(evaluator.dense)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _metrics(folder) as metrics:

            def record(step: Step) -> None:
                metrics.write(json.dumps(asdict(step)) + "\n")
                on_step(step)

            score, allocation = evaluate(evaluator, proposal, record, on_rung, folder)
            metrics.write(json.dumps(asdict(score)) + "\n")
    except CompressionError:
        raise
    except Exception as error:  # whatever ends a trial is that trial's result, not the search's end
        return failed(proposal.number, error, folder)
    return Outcome(number=proposal.number, score=score, reason=reason, allocation=allocation)


def wait_for_rate(dense: DenseModel) -> None:
    """Return when the learning rate of the run is known here: before any trial it was probed, and written to a disk that may
    be another node's.

    Raises:
        RunError: it does not appear.
    """
    end = time.monotonic() + RATE_SECONDS
    while dense.objective.finetune.is_probed:
        if time.monotonic() >= end:
            path = dense.objective.factors.parent / RATE
            raise RunError(f"{path} is not to be seen from {socket.gethostname()}: choose an --output that all nodes share")
        time.sleep(0.5)


def _metrics(folder: Path) -> IO[str]:
    """The trial's steps, a line each as they are taken; a fine-tune that goes on from a rung adds to those before."""
    cut_torn_line(folder / METRICS)
    mode = "a" if (folder / CHECKPOINT).exists() else "w"
    return (folder / METRICS).open(mode, buffering=1, encoding="utf-8")


def failed(number: int, error: Exception, folder: Path) -> Outcome:
    """The outcome of a trial that raised; its traceback is kept in stderr.log, unless that cannot be written either."""
    text = "".join(traceback.format_exception(error))
    reason = f"{type(error).__name__}: {_said(error)[:300]}"
    return Outcome(number=number, score=None, reason=reason + keep_stderr(folder, text), starved=is_out_of_memory(error))


def _said(error: Exception) -> str:
    """In one line; of what torch brings from another process, where it was and the end of the traceback that it quotes."""
    text = str(error)
    where, quoted, _ = text.partition("\nOriginal Traceback")
    return " ".join((f"{where} {text.splitlines()[-1]}" if quoted else text).split())


def keep_stderr(folder: Path, text: str) -> str:
    """Write what a trial left on stderr; returns what to add to its reason where that cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STDERR).write_text(text, encoding="utf-8")
    except OSError as error:
        return f" ({STDERR} could not be written: {error.strerror or error})"
    return ""


def evaluate(
    evaluator: Evaluator, proposal: Proposal, on_step: OnStep, on_rung: OnRung, folder: Path
) -> tuple[Score, Allocation]:
    """The score of a proposal, and its allocation, which a recipe finds itself; weights and checkpoint go to `folder`."""
    weights, outcomes = folder / WEIGHTS, folder / OUTCOMES
    if proposal.recipe is not None:  # trains otherwise than a candidate: its error at a rung could be compared with nothing
        return evaluate_recipe(evaluator, proposal.recipe, proposal.limits, proposal.seed, on_step, weights, outcomes)
    assert proposal.allocation is not None
    checkpoint = folder / CHECKPOINT if evaluator.dense.objective.rung_steps else None
    score = evaluator.evaluate(proposal.allocation, proposal.seed, on_step, weights, on_rung, checkpoint, outcomes)
    return score, proposal.allocation


def screen(evaluator: Evaluator, candidates: Sequence[Allocation]) -> tuple[AsBuilt, ...]:
    """What candidates are as built; NaN where it could not be measured."""
    return tuple(_as_built(evaluator, each) for each in candidates)


def probe(evaluator: Evaluator, job: Probe) -> float:
    """Divergence of a candidate after a fine-tune with another learning rate; NaN where it could not be measured."""
    try:
        return evaluator.probe(job.allocation, job.lr, job.steps)
    except CompressionError:
        raise
    except Exception:
        return math.nan


def _as_built(evaluator: Evaluator, allocation: Allocation) -> AsBuilt:
    """What screening measures; a candidate that cannot be measured is the sampler's to avoid, and ends nothing."""
    try:
        return evaluator.as_built(allocation)
    except CompressionError:
        raise
    except Exception:
        return AsBuilt(divergence=math.nan, changed=math.nan)


def needs_of(*, latency: bool, factors: bool, profile: bool, frames: bool, batches: bool) -> list[Need]:
    """What is computed once per run.

    Args:
        latency: whether the search has it as a cost.
        factors: whether allocations are built, and not recipes alone.
        profile: whether sites are measured, where allocations are built.
        frames: whether schedules of tokens and sets of branches that are searched are measured, where allocations are built.
        batches: whether trials are to be run.
    """
    wanted: dict[Need, bool] = {
        "latency": latency, "factors": factors, "profile": factors and profile, "frames": factors and frames,
        "batches": batches,
    }  # fmt: skip
    return [need for need, is_wanted in wanted.items() if is_wanted]


def compute(
    dense: DenseModel, needs: Sequence[Need], measured: Callable[[], None] = lambda: None, group: Group = ALONE
) -> None:
    """Compute what is computed once per run, or load it where that was done.

    Args:
        dense: what trials share.
        needs: what else trials use than the dense model's answers.
        measured: called when the dense model's figures are there.
        group: the processes that will fine-tune each candidate together.
    """
    if "latency" in needs:  # timed first, while nothing that is computed here fills the processor's caches
        _ = dense.latency
    if "batches" in needs:
        dense.keep_search()
    _ = dense.figures
    measured()
    if "factors" in needs:
        _ = dense.factors
    if "profile" in needs:
        _ = dense.profile
    if "frames" in needs:
        _ = dense.frames
    _ = dense.answers, dense.outcomes  # else the first trial would pay for them
    if "batches" in needs:
        dense.keep_training(group)
        if dense.objective.split_before == "train":
            _ = dense.screening
