"""A fine-tune that outlives its process: its state at the last rung that it passed, in a file of tensors and JSON."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from objectives.error import Evaluation
from objectives.training.kept import Best
from objectives.training.state import load_state, read_note, save_state

_FORMAT = 4


@dataclass(frozen=True, kw_only=True)
class Passed:
    """How far a candidate has come.

    Attributes:
        before: figures as built, on `Objective.split_before`.
        best: of its weights so far.
        step: optimiser steps taken.
        rungs: optimiser step -> top-1 error there.
        seconds: wall time so far.
        parts: how many its batches were split in.
    """

    before: Evaluation
    best: Best
    step: int = 0
    rungs: Mapping[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    parts: int = 1


class Checkpoint:
    """The state of one fine-tune in a file: weights, the best ones so far, optimizer, loss scaling and torch's generators (of
    the CPU and CUDA).

    Args:
        path: the file; with None nothing is kept. A damaged one, or one of other conditions, is removed.
        conditions: all that the fine-tune depends on.

    Attributes:
        passed: the rung to go on from; None where there is none.
        began: `time.perf_counter()` when the candidate was begun, had one process done all of it.
    """

    def __init__(self, path: Path | None, *conditions: object) -> None:
        self._path = path
        versions = (_FORMAT, torch.__version__, timm.__version__)
        self._mark = hashlib.sha256(repr((*versions, *conditions)).encode()).hexdigest()
        self.passed = self._read()
        self.began = time.perf_counter() - (self.passed.seconds if self.passed else 0.0)

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> int:
        """Bring them, which `save` saves from now on, to the rung to go on from; the optimiser steps taken there."""
        self._model, self._optimizer, self._scaler = model, optimizer, scaler
        if self.passed is None or self._path is None:
            return 0
        state = load_state(self._path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"], _device(model))
        return self.passed.step

    def best(self) -> Mapping[str, Tensor] | None:
        """The best weights at the rung to go on from; None where they are those as built."""
        if self.passed is None or self._path is None or not self.passed.best.step:
            return None
        found: Mapping[str, Tensor] = load_state(self._path)[_place(self.passed)]
        return found

    def save(self, passed: Passed, best: Mapping[str, Tensor]) -> None:
        """Write where the fine-tune is now, atomically; nothing where the optimizer's state holds what JSON has no form for.

        Args:
            passed: how far it is.
            best: the best weights so far.
        """
        if self._path is None:
            return
        passed = replace(passed, seconds=time.perf_counter() - self.began)
        model, optimizer, scaler = (entry.state_dict() for entry in (self._model, self._optimizer, self._scaler))
        state = {"model": model, "optimizer": optimizer, "scaler": scaler, "cpu": torch.get_rng_state()}
        if passed.best.step:  # those as built are built again
            state.setdefault(_place(passed), best)
        if _device(self._model).type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(_device(self._model))
        try:
            note = {**vars(passed), "before": passed.before.to_dict(), "best": asdict(passed.best)}
            save_state(self._path, self._mark, state, note)
        except TypeError:
            return
        self.passed = passed

    def remove(self) -> None:
        """The candidate is done with."""
        self.passed = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _read(self) -> Passed | None:
        note = None if self._path is None else read_note(self._path, self._mark)
        try:
            return None if note is None else _passed(note)
        except (KeyError, TypeError, ValueError, AttributeError):  # damaged: begun anew, nothing is lost but time
            return None


def _passed(entry: Mapping[str, Any]) -> Passed:
    rungs = {int(step): error for step, error in entry["rungs"].items()}
    return Passed(**{**entry, "before": Evaluation(**entry["before"]), "best": Best(**entry["best"]), "rungs": rungs})


def _place(passed: Passed) -> str:
    """Where a state has the best weights: they are the model's, or beside them."""
    return "model" if passed.best.step == passed.step else "best"


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
