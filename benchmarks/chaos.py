"""Kills processes of a real search at random moments, and counts what is lost. Prints a table; keeps no file.

python benchmarks/chaos.py --kills 100
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from local_chaos import Chaos, Kind, Launches, faults_of, journal_of
from local_patience import poll

# Of a hundred kills; the rest are of workers.
_SHARES: dict[Kind, float] = {"driver": 0.15, "raylet": 0.05, "gcs": 0.05}
_PATIENCE = 60.0  # seconds; beyond them something has stalled
_STRAY_SECONDS = 120.0  # agents of Ray wait a minute for a driver that was killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=120, help="of every fine-tune")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0, help="after which no further kill is begun")
    parser.add_argument("--log", type=Path, help="where to keep the output of the launches")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        launches = Launches(Path(folder), arguments.steps)
        try:
            _measure(launches, arguments)
        finally:
            launches.close()
            if arguments.log:
                arguments.log.write_text(launches.log.read_text())


def _measure(launches: Launches, arguments: argparse.Namespace) -> None:
    start = time.time()
    chaos = Chaos(launches, arguments.seed, _PATIENCE, report=lambda text: print(text, file=sys.stderr, flush=True))
    status = chaos.run(_kinds(arguments.kills), seconds=60 * arguments.minutes)
    took, tally = time.time() - start, chaos.tally
    gone = poll(lambda: not launches.processes(), _STRAY_SECONDS)
    journal, faults = journal_of(launches.run), list(faults_of(launches.run))
    print("| kills of | number | median seconds to the next finished trial | longest |\n|---|---|---|---|")
    for kind, count in tally.kills.items():
        seconds = tally.recovery.get(kind, [float("nan")])
        print(f"| {kind} | {count} | {statistics.median(seconds):.1f} | {max(seconds):.1f} |")
    states = {state: sum(trial.state.name == state for trial in journal) for state in ("COMPLETE", "PRUNED", "FAIL")}
    print(f"\n{sum(tally.kills.values())} kills in {took:.0f} s; {tally.relaunches} relaunches; last exit status {status}")
    print(f"exit statuses of drivers that were not killed: {dict(tally.ends)}")
    print(f"trials: {states}, {chaos.wanted} wanted; of {len(tally.shown)} shown as complete {len(tally.lost)} were lost")
    print(f"duplicated: {len(journal) - len({trial.user_attrs['number'] for trial in journal})}; stalls: {tally.stalls}")
    print(f"processes left after {_STRAY_SECONDS:.0f} s: {0 if gone else launches.processes()}")
    print("inconsistencies: " + ("none" if not faults else "".join(f"\n- {fault}" for fault in faults)))


def _kinds(kills: int) -> list[Kind]:
    kinds: list[Kind] = [kind for kind, share in _SHARES.items() for _ in range(round(share * kills))]
    workers: list[Kind] = ["worker"] * (kills - len(kinds))
    return [*kinds, *workers]


if __name__ == "__main__":
    main()
