"""How long building a candidate takes, as a share of decomposing the model anew.

    python benchmarks/build.py --model deit_small_patch16_224

Both in one run on the same device. "Decomposing" is the linear algebra of `Factors.compute` without the calibration
pass; a candidate built without stored factors would pay it every time.
"""

import argparse
import statistics
import time
from unittest import mock

import timm
import torch
from torch import nn

from objectives.cost.closed_form import cost_model
from spaces.factors import Factors
from spaces.models.create import input_size
from spaces.sites import Space
from spaces.statistics import collect
from spaces.vit import describe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--spaces", nargs="+", default=["contract", "low-rank", "full"])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = timm.create_model(arguments.model).eval()
    images = torch.randn(arguments.images, *input_size(model))
    print(f"{arguments.model}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| space | calibration pass, s | decomposing, s | building a candidate that keeps 50 % of MACs, s (spread) | share |")
    print("|---|---|---|---|---|")
    for name in arguments.spaces:
        print(measure(model, describe(model, name), images, arguments.repeats), flush=True)


def measure(model: nn.Module, space: Space, images: torch.Tensor, repeats: int) -> str:
    """One row of the table."""
    start = time.perf_counter()
    parts = ("qkv", "proj", "fc1", "fc2")
    linears = [name for name, _ in model.named_modules() if name.startswith("blocks") and name.endswith(parts)]
    attentions = {name: model.get_submodule(name.removesuffix(".qkv")) for name in linears if name.endswith("qkv")}
    heads: dict[str, int] = {name: attention.num_heads for name, attention in attentions.items()}  # type: ignore[misc]
    moments = collect(model, linears, images.split(16), heads)
    calibration = time.perf_counter() - start
    with mock.patch("spaces.factors.collect", return_value=moments):
        start = time.perf_counter()
        factors = Factors.compute(model, space, [])
        decomposing = time.perf_counter() - start
    costs = cost_model(model, space)
    allocation = space.decode(0.5, lambda candidate: costs.count(candidate, "macs") / costs.dense["macs"])
    factors.build(allocation)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        factors.build(allocation)
        times.append(time.perf_counter() - start)
    middle, spread = statistics.median(times), f"{min(times):.3f}–{max(times):.3f}"
    return f"| {space.name} | {calibration:.1f} | {decomposing:.2f} | {middle:.3f} ({spread}) | {middle / decomposing:.2%} |"


if __name__ == "__main__":
    main()
