"""Whether a search for a latency meets it, and what latency a search for as many MACs has.

    OMP_NUM_THREADS=1 python benchmarks/latency.py --img-size 64 --share 60

Two searches on the digits, one for a share of the latency and one for the same share of the MACs, with fine-tunes too short to
mean anything: errors are not looked at. Of each, the allocations nearest to the budget are built, and timed in turns with the
dense model, in several sittings, by a clock that counts this thread's time alone: on a machine that does other things, wall
time says what else it does.
"""

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from objectives.cost.spec import COSTS
from objectives.dense_model import load_dense
from objectives.evaluator import Evaluator
from objectives.latency.probe import CLOCKS, clock_of
from objectives.latency.table import LATENCY, LatencyTable
from objectives.latency.timing import forward, time_calls
from search import SearchConfig, launch
from search.run.run import Run
from search.terminal.display import Display

SECONDS, SITTINGS, POINTS = 2.0, 8, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--img-size", type=int, default=64)
    parser.add_argument("--space", default="contract")
    parser.add_argument("--share", type=float, default=60, help="per cent of the latency, and of the MACs, to keep")
    parser.add_argument("--batch-size", type=int, default=1, help="images in a call")
    parser.add_argument("--seconds", type=float, default=0.5, help="for every size of the table, at a time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for cost in ("latency", "flops"):
            target, output = f"{cost}={arguments.share:g}%", Path(folder) / cost
            if (table := Path(folder) / "latency" / LATENCY).exists():
                output.mkdir()
                shutil.copy(table, output / LATENCY)
            run = launch(_config(arguments, target, output), Display(Console(width=160)))
            _report(run, target)


def _config(arguments: argparse.Namespace, target: str, output: Path) -> SearchConfig:
    options: dict[str, Any] = {
        "model": "vit_tiny_patch16_224",
        "model_kwargs": {"img_size": arguments.img_size, "in_chans": 1},
        "num_classes": 10,
        "mean": [0.3],
        "std": [0.37],
        "crop_pct": 1.0,
        "dataset": "digits",
        "hflip": 0.0,
        "batch_size": 8,
        "calibration_size": 64,
        "search_size": 64,
        "profile_images": 0,
        "steps": 1,
        "device": "cpu",
        "threads": 1,
        "space": arguments.space,
        "target": [target],
        "objectives": "error,flops,latency",
        "baselines": ["uniform", "random"],
        "trials": 10,
        "latency_batch_size": arguments.batch_size,
        "latency_seconds": arguments.seconds,
    }
    return SearchConfig.from_flat({**options, "output": str(output)})


def _report(run: Run, target: str) -> None:
    """A line per point: what the table says of it, and what was measured."""
    evaluator, table = Evaluator(load_dense(run.config.objective(run.directory))), LatencyTable.load(run.directory / LATENCY)
    print(f"\n## --target {target}\n\n{table.text}, clock {table.clock}: dense {COSTS['latency'].format(table.dense)}")
    print("table against whole models, relative: " + ", ".join(f"{check.error:+.1%}" for check in table.checks))
    ((cost, limit),) = run.summary.targets[0].limits.items()
    trials = [trial for trial in run.complete if trial.label != "dense"]
    trials = sorted(trials, key=lambda trial: -trial.costs[cost])[:POINTS]
    images = torch.randn(table.config.latency_batch_size, 1, *evaluator.dense.preprocessing["input_size"][1:])
    models = {
        "dense": evaluator.dense.model,
        **{str(trial.number): evaluator.build(trial.allocation) for trial in trials},
    }
    calls = {name: forward(model, images, table.config.setting) for name, model in models.items()}
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(SITTINGS):
        timings = time_calls(calls, SECONDS, 1, CLOCKS[clock_of(images.device, 1)])
        for name, timing in timings.items():
            found[name].append(timing.seconds / timings["dense"].seconds)
    print("\n| trial | label | keeps of MACs | of latency, table | measured (least to most) | off the table | off the target |")
    print("|---|---|---|---|---|---|---|")
    for trial in trials:
        shares, kept = found[str(trial.number)], trial.kept["latency"]
        middle, wanted = statistics.median(shares), limit / run.summary.dense.costs[cost]
        print(
            f"| {trial.number} | {trial.label or ''} | {trial.kept['macs']:.1%} | "
            f"{kept:.1%} | {middle:.1%} ({min(shares):.1%} to {max(shares):.1%}) | "
            f"{middle / kept - 1:+.1%} | {middle / wanted - 1:+.1%} |"
        )


if __name__ == "__main__":
    main()
