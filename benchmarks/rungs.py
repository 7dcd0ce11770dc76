"""What stopping dominated candidates saves, and whether it stops a wrong one: stopped trials of runs, fine-tuned to their end.

    python benchmarks/rungs.py runs/NAME ...

A stopped trial was a wrong one if it would be on the front of all trials, had it been finished.
"""

import argparse
import time

import pandas as pd
import torch

from objectives.cost.spec import COSTS
from objectives.dense_model import load_dense
from objectives.evaluator import Evaluator
from search import Run, open_run
from search.pareto import front, hypervolume

HEADER = (
    "| run | sampler | trials | sampled | stopped | farthest behind | steps saved | time saved | cost of rungs | wrongly "
    "| hypervolume lost |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    print(HEADER + "\n" + "|---" * HEADER.count(" | ") + "|---|")
    for directory in parser.parse_args().runs:
        run = open_run(directory)
        torch.set_num_threads(run.config.machines.threads or torch.get_num_threads())
        print(row(run), flush=True)


def row(run: Run) -> str:
    """One line of the table."""
    evaluator = Evaluator(load_dense(run.config.objective(run.directory)))
    trials = run.trials.set_index("number", drop=False)
    stopped = [trial for trial in run.ended if trial.state == "PRUNED"]
    whole = trials.copy()
    for trial in stopped:
        score = evaluator.evaluate(trial.allocation, trial.seed or 0)
        whole.loc[trial.number, ["error", "steps", "seconds"]] = score.error, score.steps, score.seconds
    saved = {name: 1 - trials[name].sum() / whole[name].sum() for name in ("steps", "seconds")}
    points, ours = points_of(run, whole), points_of(run, trials[trials["state"] == "COMPLETE"])
    wrong = [int(whole["number"].iloc[index]) for index in front(points) if whole["state"].iloc[index] == "PRUNED"]
    full, reached = (hypervolume(each, [1.0] * len(run.summary.objectives)) for each in (points, ours))
    cells = (
        run.directory, run.config.study.sampler, len(trials), int(trials["label"].isna().sum()), len(stopped),
        f"{behind(trials):.1%}", f"{saved['steps']:.1%}", f"{saved['seconds']:.1%}", f"{overhead(run, evaluator):.1%}",
        wrong or "none", f"{1 - reached / full:.3%}",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def points_of(run: Run, trials: pd.DataFrame) -> list[tuple[float, ...]]:
    """Objectives of every trial, costs as shares of the dense model's."""
    columns = [COSTS[name].kept if name in COSTS else name for name in run.summary.objectives]
    return list(trials[columns].itertuples(index=False, name=None))


def behind(trials: pd.DataFrame) -> float:
    """How far a sampled candidate that went on was behind one of no more MACs at the last rung: the farthest of all."""
    finished = trials[trials["state"] == "COMPLETE"]
    sampled = finished[finished["label"].isna()]
    cheapest = [finished["rung_error"][finished["macs"] <= macs].min() for macs in sampled["macs"]]
    return float((sampled["rung_error"] - cheapest).max())


def overhead(run: Run, evaluator: Evaluator) -> float:
    """Share of a finished trial's CPU time that its rungs cost: medians of five, in turns."""
    chosen = next(trial.allocation for trial in run.ended if trial.label == "warm start")
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(5):
        for measured in times:
            start = time.process_time()
            evaluator.evaluate(chosen, 0, on_rung=(lambda step, error: False) if measured else None)
            times[measured].append(time.process_time() - start)
    without, with_rungs = (sorted(times[measured])[2] for measured in (False, True))
    return with_rungs / without - 1


if __name__ == "__main__":
    main()
