"""What each way to make a fine-tuning step cheaper is worth, switched on alone or together with others, against the plain step.

    python benchmarks/ways.py --device cuda --model vit_small_patch16_224 --steps 30 \\
        --ways base amp bf16 fused compile graph padded pinned resident amp+fused+resident --share 0.12 0.5 1.0 --out ways.jsonl
    OMP_NUM_THREADS=1 python benchmarks/ways.py --tiny --ways base fused padded compile

A way is one switch, or several joined by +; benchmarks/steps.py says what each does. The plain step, base, computes in float32
with torch's default AdamW, attention as torch finds it, and images from pageable memory.

The ways of a share are timed in turns, so that what else the machine does meets all of them. Of every way there is a JSON line:

- way, share: what was timed; at a share of 1 the dense model.
- ms, ms_least, ms_most: of a step, median, least and most of the rounds; of the CPU's time on a CPU, else of the clock's.
- preparation_s: what the first steps took more than others: compiling, capturing.
- share_of_base, pays_after_steps: of base's milliseconds; steps that win the preparation back, null if none do.
- kl, kl_moved: divergence in nats from base's model, after as many steps on the same batches, and what base's model has moved
  meanwhile. Images are noise: this says what a way's rounding does, not what it does to an error.
- memory_bytes: most that was held at once on a GPU.
- error: what made the way impossible here.
"""

import argparse
import copy
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from steps import KNOWN, Batch, Steps
from timm.models import load_checkpoint
from torch import Tensor, nn

from objectives.cost.closed_form import cost_model
from objectives.runtime.device import name_of, resolve_device
from spaces.errors import first_line
from spaces.factors import Factors
from spaces.models.create import input_size
from spaces.vit import describe

WARM_UP = 3  # steps that compile, tune and capture, and are no part of what a step takes
HELD_OUT = 64  # images that divergences are measured on
BATCHES = 4  # different ones, again and again
# Head widths as profiles choose them: fewer of queries and keys than of values. In log-odds of the share that is kept.
OFFSETS = {".qk": -0.4, ".vo": 0.4}
TINY: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 10}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--model-kwargs", type=json.loads, default={}, help="JSON")
    parser.add_argument("--checkpoint", help="weights of the dense model; random ones without it")
    parser.add_argument("--ways", nargs="+", default=["base", *KNOWN], help=f"base, or of {', '.join(KNOWN)}, joined by +")
    parser.add_argument("--share", type=float, nargs="+", default=[0.12, 0.5, 1.0], help="of the MACs; 1 is the dense model")
    parser.add_argument("--steps", type=int, default=30, help="in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--calibration", type=int, default=32, help="images that the candidates are built from")
    parser.add_argument("--tiny", action="store_true", help="a model of two blocks and few images, to try the script")
    parser.add_argument("--out", type=Path, help="file that the lines are added to; they are printed in any case")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.model, arguments.model_kwargs = "vit_tiny_patch16_224", TINY
        arguments.steps, arguments.rounds, arguments.batch_size = min(arguments.steps, 4), 1, 8
    for row in measure(arguments):
        print(line := json.dumps(row), flush=True)
        if arguments.out:
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows, as they come."""
    device = resolve_device(arguments.device)
    torch.manual_seed(0)
    dense = timm.create_model(arguments.model, **arguments.model_kwargs).eval()
    if arguments.checkpoint:
        load_checkpoint(dense, arguments.checkpoint)
    about = {
        "device": name_of(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "model": arguments.model,
        "model_kwargs": arguments.model_kwargs,
        "batch_size": arguments.batch_size,
        "steps": arguments.steps,
        "rounds": arguments.rounds,
    }
    candidates = Candidates(dense, device, arguments.calibration)
    batches = [candidates.batch(arguments.batch_size) for _ in range(BATCHES)]
    for share in arguments.share:
        comparison = Comparison(candidates.build(share), batches, candidates.images(HELD_OUT), device, arguments.steps)
        for row in comparison.rows(arguments.ways, arguments.rounds):
            yield {**about, "share": share, **row}


class Candidates:
    """A dense model, and candidates of it in the contracted space.

    Args:
        dense: on the CPU.
        device: where it is calibrated, and where it computes the soft labels.
        calibration: images of noise.
    """

    def __init__(self, dense: nn.Module, device: torch.device, calibration: int) -> None:
        self._dense, self._device, self._calibration = dense, device, calibration
        self._space = describe(dense)
        self._costs = cost_model(dense, self._space)
        self._factors: Factors | None = None

    def build(self, share: float) -> nn.Module:
        """The candidate of a share of the MACs, on the CPU; every block keeps the same share."""
        if share >= 1:
            return copy.deepcopy(self._dense)
        if self._factors is None:
            images = self.images(self._calibration).split(16)  # type: ignore[no-untyped-call]
            self._factors = Factors.compute(self._dense, self._space, images, self._device)
        offsets = {site.name: OFFSETS.get(site.name[-3:], 0.0) for site in self._space.sites}
        macs = self._costs.dense["macs"]
        allocation = self._space.decode(share, lambda sizes: self._costs.count(sizes, "macs") / macs, offsets=offsets)
        return self._factors.build(allocation)

    def images(self, count: int) -> Tensor:
        """Noise, [count, C, H, W] on the CPU."""
        return torch.randn(count, *input_size(self._dense))

    def batch(self, count: int) -> Batch:
        """Images with random labels and the dense model's logits, on the CPU."""
        images = self.images(count)
        teacher = copy.deepcopy(self._dense).to(self._device)
        with torch.inference_mode():
            soft = torch.cat([teacher(some.to(self._device)).float().cpu() for some in images.chunk(-(-count // 32))])
        return images, torch.randint(soft.shape[1], (count,)), soft.clone()


@dataclass
class Way:
    """One way, with a model of its own.

    Attributes:
        name: as on the command line.
        steps: takes its steps; None where it is impossible.
        error: why it is impossible.
        first: seconds of the first round's steps up to the last one that prepares.
        times: seconds of a step, of every round.
        outputs: log-probabilities of its model after the first round.
        memory: most bytes that were held on a GPU.
    """

    name: str
    steps: Steps | None = None
    error: str | None = None
    first: float = 0.0
    times: list[float] = field(default_factory=list)
    outputs: Tensor | None = None
    memory: int | None = None


class Comparison:
    """All ways to train one candidate.

    Args:
        candidate: on the CPU; not changed.
        batches: that it is trained on.
        held_out: images that divergences are measured on.
        device: where.
        steps: of a round.
    """

    def __init__(
        self, candidate: nn.Module, batches: Sequence[Batch], held_out: Tensor, device: torch.device, steps: int
    ) -> None:
        self._candidate, self._batches, self._held_out, self._device = candidate, batches, held_out, device
        self._steps = steps
        self._clock: Callable[[], float] = _used if device.type == "cpu" else self._synchronised

    def rows(self, names: Sequence[str], rounds: int) -> list[dict[str, Any]]:
        """What was found of every way."""
        ways = [Way(name) for name in names]
        for number in range(rounds):
            for way in ways:
                if way.error is None:
                    self._attempt(way, number)
        before = self._outputs(copy.deepcopy(self._candidate).to(self._device))
        base = next((way for way in ways if way.name == "base" and way.error is None), None)
        return [self._row(way, base, before) for way in ways]

    def _attempt(self, way: Way, number: int) -> None:
        """One round of a way, or the error that ends it."""
        try:
            if number == 0:
                self._first_round(way)
            assert way.steps is not None
            way.times.append(self._time(way.steps, self._steps) / self._steps)
        except Exception as error:  # what a way needs may be missing here in many ways, and others go on
            way.error, way.steps = f"{type(error).__name__}: {first_line(error)[:300]}", None

    def _first_round(self, way: Way) -> None:
        """Prepare, and train as many steps from the candidate as every way does."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        began, held = self._clock(), self._held()
        switches = frozenset(way.name.split("+")) - {"base"}
        way.steps = Steps(copy.deepcopy(self._candidate), switches, self._batches, self._device, self._steps)
        self._time(way.steps, min(WARM_UP, self._steps))
        way.first = self._clock() - began
        self._time(way.steps, self._steps - min(WARM_UP, self._steps))
        way.outputs = self._outputs(way.steps.trained())
        if self._device.type == "cuda":
            way.memory = torch.cuda.max_memory_allocated(self._device) - held

    def _held(self) -> int:
        return torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else 0

    def _time(self, steps: Steps, count: int) -> float:
        began = self._clock()
        steps.take(count)
        return self._clock() - began

    def _synchronised(self) -> float:
        torch.accelerator.synchronize(self._device)
        return time.perf_counter()

    @torch.inference_mode()
    def _outputs(self, model: nn.Module) -> Tensor:
        """Log-probabilities of the held-out images, [images, classes]."""
        model.eval()
        outputs = torch.cat([model(some.to(self._device)).float() for some in self._held_out.chunk(2)])
        model.train()
        return F.log_softmax(outputs, dim=-1).cpu()

    def _row(self, way: Way, base: Way | None, before: Tensor) -> dict[str, Any]:
        if way.error is not None or way.outputs is None:
            return {"way": way.name, "error": way.error}
        step = statistics.median(way.times)
        preparation = max(0.0, way.first - min(WARM_UP, self._steps) * step)
        row: dict[str, Any] = {
            "way": way.name,
            "ms": round(step * 1e3, 3),
            "ms_least": round(min(way.times) * 1e3, 3),
            "ms_most": round(max(way.times) * 1e3, 3),
            "preparation_s": round(preparation, 3),
        }
        if base is not None and base.outputs is not None:
            saved = statistics.median(base.times) - step
            more = preparation - max(0.0, base.first - min(WARM_UP, self._steps) * statistics.median(base.times))
            row["share_of_base"] = round(1 - saved / statistics.median(base.times), 4)
            row["pays_after_steps"] = None if saved <= 0 else max(0, round(more / saved))
            row["kl"] = _divergence(way.outputs, base.outputs)
            row["kl_moved"] = _divergence(before, base.outputs)
        if way.memory is not None:
            row["memory_bytes"] = way.memory
        return row


def _used() -> float:
    """Seconds of the CPU's time of this process, and of compilers that it has called."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _divergence(found: Tensor, expected: Tensor) -> float:
    """Mean KL divergence in nats of log-probabilities."""
    return float(F.kl_div(found, expected, reduction="batchmean", log_target=True))


if __name__ == "__main__":
    main()
