"""Does the first answer order budgets as the fine-tune does? And how long does it take?

    python benchmarks/fashion_mnist.py
    python benchmarks/first_answer.py --checkpoint fmnist_vit.safetensors --threads 1

The first answer of `inspect --front`, timed from the start of this process; then a short fine-tune of each of its points.
Kendall's tau between the KL as built on the images of the profile and the KL and error after the fine-tune on the search split.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import fashion_mnist
import torch
from scipy.stats import kendalltau

from objectives.cost.spec import MAIN
from objectives.dense_model import load_dense
from objectives.evaluator import Evaluator
from objectives.score import Score
from search.config import SearchConfig
from search.driver.observer import Observer
from search.driver.preview import preview
from search.run.first_answer import FirstAnswer, FirstPoint, bend_text


class Stages(Observer):
    """CPU seconds at the first and the last word of every stage."""

    def __init__(self) -> None:
        self.times: dict[str, tuple[float, float, int]] = {}

    def stage(self, what: str, done: int, total: int) -> None:
        now = time.process_time()
        self.times[what] = self.times.get(what, (now, now, total))[0], now, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data-dir", default=fashion_mnist.OPTIONS["data_dir"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--answer-only", action="store_true", help="fine-tune nothing")
    parser.add_argument("--output", help="run directory that is kept; by default none is")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        output = arguments.output or folder
        given = {name: getattr(arguments, name) for name in ("checkpoint", "data_dir", "steps", "lr")}
        config = SearchConfig.from_flat({**fashion_mnist.OPTIONS, **given, "output": output})
        config = replace(config, machines=replace(config.machines, threads=arguments.threads))
        stages = Stages()
        answer = preview(config, stages)
        _times(stages, time.process_time())
        if arguments.answer_only:
            return
        evaluator = Evaluator(load_dense(config.objective(Path(output))))
        points = answer.along(MAIN.name)
        _points(answer, points, [evaluator.evaluate(point.allocation, seed=config.study.seed) for point in points])


def _times(stages: Stages, total: float) -> None:
    print(f"CPU seconds from the start of the process to the answer: {total:.1f}\n")
    print("| stage | CPU seconds | of how many |\n|---|---|---|")
    for what, (first, last, count) in stages.times.items():
        print(f"| {what} | {last - first:.1f} | {count} |")


def _points(answer: FirstAnswer, points: tuple[FirstPoint, ...], scores: list[Score]) -> None:
    print(f"\nIn words: {bend_text(points)}.\n")
    print(
        "| MACs kept | parameters kept | KL predicted | KL as built | answers that change | KL fine-tuned | error fine-tuned |"
    )
    print("|---|---|---|---|---|---|---|")
    for point, score in reversed(list(zip(points, scores, strict=True))):
        assert point.divergence is not None and point.changed is not None and score.error is not None
        kept = f"{answer.kept(point, 'macs'):.1%} | {answer.kept(point, 'params'):.1%}"
        built = f"{point.predicted:.4f} | {point.divergence:.4f} | {point.changed:.1%}"
        print(f"| {kept} | {built} | {score.kl:.4f} | {score.error:.2%} |")
    drift = scores[-1].kl or 0.0  # of the point that loses least
    print(f"\nThe fine-tune alone moves the largest point by {drift:.4f} nats. Kendall's tau of the KL as built with\n")
    print(f"| | all {len(points)} points | those that lose more than that as built |\n|---|---|---|")
    some = [index for index, point in enumerate(points) if (point.divergence or 0.0) > drift]
    for name, figures in (
        ("KL predicted", [point.predicted for point in points]),
        ("KL fine-tuned", [score.kl for score in scores]),
        ("error fine-tuned", [score.error for score in scores]),
    ):
        taus = (_tau(points, figures, chosen) for chosen in (range(len(points)), some))
        print(f"| {name} | {' | '.join(taus)} |")


def _tau(points: tuple[FirstPoint, ...], figures: Sequence[float | None], chosen: Sequence[int]) -> str:
    tau = kendalltau([points[index].divergence for index in chosen], [figures[index] for index in chosen]).statistic
    return f"{tau:.3f} ({len(chosen)})"


if __name__ == "__main__":
    main()
