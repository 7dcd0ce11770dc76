"""When a search settles, and what its trials gained after that: of runs that did not end for it.

    python run_search.py launch --trials 60 --output runs/demo-60
    python benchmarks/ending.py runs/demo-60

A run says of each proposal what it was expected to gain and how well the front was known then. So any rule can be tried on it
afterwards: proposals do not depend on when a search ends, up to the trials that confirm picks.
"""

import argparse
import math
from pathlib import Path

from search.evidence.intervals import WIDTH
from search.evidence.settled import PATIENCE
from search.pareto import hypervolume
from search.run.finished_trial import FinishedTrial
from search.run.run import Run, open_run
from search.study.journal import Journal, thaw
from search.trial import Proposal

SHARES = (0.2, 0.1, 0.05, 0.02, 0.01)
_WORST = 1.0


def proposals_of(run: Run) -> list[Proposal]:
    """In the order of their numbers."""
    journal = Journal(run.directory, len(run.config.study.objectives))
    found = [thaw(frozen).proposal for frozen in journal.frozen()]
    journal.close()
    return sorted(found, key=lambda proposal: proposal.number)


def level(run: Run, trials: list[FinishedTrial], after: int, low: float) -> float:
    """Mean expected error of the front of the first so many trials, over the first target's loads from `low` on, in points."""
    limits = run.summary.targets[0].limits
    points = [(trial.load(limits), trial.objective("error")) for trial in trials if trial.number < after]
    within = [(max(load, low), error) for load, error in points if load <= 1]
    return 100 * (_WORST - hypervolume(within, (1.0 + 1e-9, _WORST)) / (1 - low))


def lowered(run: Run, trials: list[FinishedTrial], after: int) -> float:
    """By how much the trials after the first so many lowered the front, over the loads that these reach, in points."""
    loads = [trial.load(run.summary.targets[0].limits) for trial in trials if trial.number < after]
    low = max(run.config.study.band, min(loads))
    return level(run, trials, after, low) - level(run, trials, len(trials), low)


def best(run: Run, trials: list[FinishedTrial], after: int) -> float:
    """Least expected error under the first target, of the first so many trials, in points."""
    limits = run.summary.targets[0].limits
    return 100 * min(trial.objective("error") for trial in trials if trial.number < after and trial.load(limits) <= 1)


def settled(proposals: list[Proposal], share: float) -> int | None:
    """Trials with which the search would have settled; None where it would not."""
    small = 0
    for entry in proposals:
        if entry.label is None:
            gain, known = (math.inf if value is None else value for value in (entry.gain, entry.known_to))
            small = small + 1 if gain < share * known else 0
            if small == PATIENCE:
                return entry.number + 1
    return None


def report(run: Run) -> None:
    trials, proposals = list(run.complete), proposals_of(run)
    last = len(proposals)
    known = next(entry.known_to for entry in reversed(proposals) if entry.known_to is not None)
    print(f"{run.directory}: {last} trials; the level of the front is known to ±{100 * WIDTH * known:.3f} points")
    print("| gain below | settled after trials | gain expected then | the rest lowered the front by | and the best by |")
    print("|---|---|---|---|---|")
    for share in SHARES:
        after = settled(proposals, share)
        if after is None:
            print(f"| {share:.0%} of the spread | not | | | |")
            continue
        gain = proposals[after - 1].gain or 0.0
        better = best(run, trials, after) - best(run, trials, last)
        print(f"| {share:.0%} of the spread | {after} | {100 * gain:.4f} | {lowered(run, trials, after):.4f} | {better:.4f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    for path in parser.parse_args().runs:
        report(open_run(path))
