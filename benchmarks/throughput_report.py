"""Tables in Markdown of what benchmarks/throughput.py measured; its part `report` prints them."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

from throughput_records import Key, Record

from search.pareto import hypervolume

REFERENCE = (1.0, 1.0)  # share of the MACs, error
AFTER = (10, 20, 30, 50, 100)
APART = "sizes under the budget"  # a stage of the benchmark, not of an engine
Groups = Mapping[Key, Sequence[Record]]


def report(records: Sequence[Record]) -> None:
    """All tables, case by case."""
    for case in dict.fromkeys(record.key.case for record in records):
        print(f"\n## {case}")
        groups = grouped([record for record in records if record.key.case == case])
        candidates({key: found for key, found in groups.items() if key.part == "candidates"})
        searches({key: found for key, found in groups.items() if key.part == "search"})
        under_budget({key: found for key, found in groups.items() if key.part == "budget"})


def grouped(records: Sequence[Record]) -> Groups:
    """The records of every key in order; of candidates the last process that measured any, from its last reference on."""
    groups = defaultdict(list)
    for record in records:
        groups[record.key].append(record)
    for key, found in groups.items():
        if key.part == "candidates":
            measured = [record for record in found if record.process == found[-1].process]
            references = [place for place, record in enumerate(measured) if record.share > limit_of(key.budget)]
            groups[key] = measured[max(references, default=0) :]
    return groups


def limit_of(budget: float | None) -> float:
    """The share of the MACs that a budget in percent allows."""
    return 1.0 if budget is None else budget / 100


def seconds(record: Record) -> float:
    """That count: CPU seconds, or on a GPU wall seconds."""
    return record.wall if "cuda" in record.key.case else record.cpu


def kind(case: str) -> str:
    return "wall s" if "cuda" in case else "CPU s"


def candidates(groups: Groups) -> None:
    """What a further candidate of a budget takes, and a whole process of a few."""
    rows: dict[tuple[float | None, str], list[Sequence[Record]]] = defaultdict(list)
    for key, found in groups.items():
        if len(found) > 1:
            rows[key.budget, key.engine].append(found)
    if not rows:
        return
    unit, naive = kind(next(iter(groups)).case), dict[float | None, float]()
    print(f"\nA further candidate, in {unit}: median over the turns (least to most). Wall seconds beside it.\n")
    print(
        f"| MACs | engine | really | n | {unit} | candidates an hour | x naive | wall s | whole process: candidates, {unit} |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for (budget, engine), turns in sorted(rows.items(), key=lambda row: (row[0][0] or 0, row[0][1])):
        each = [statistics.mean(differences(found, "cpu" if unit == "CPU s" else "wall")) for found in turns]
        walls = [statistics.mean(differences(found, "wall")) for found in turns]
        took, kept = (
            statistics.median(each),
            statistics.mean(record.share for record in turns[-1] if record.share <= limit_of(budget)),
        )
        naive.setdefault(budget, took) if engine == "naive" else None
        whole = statistics.median(seconds(found[-1]) - found[-1].seconds.get(APART, 0.0) for found in turns)
        ratio = f"{naive[budget] / took:.2f}" if budget in naive else "–"
        print(
            f"| {budget:g} % | {engine} | {kept:.1%} | {len(turns)} | {took:.2f} ({min(each):.2f} to {max(each):.2f}) | "
            f"{3600 / took:.0f} | {ratio} | {statistics.median(walls):.2f} | {len(turns[-1])}: {whole:.1f} |"
        )
    by_stage({f"{engine}, {budget:g} %": turns[-1] for (budget, engine), turns in rows.items()}, "a further candidate", False)


def differences(found: Sequence[Record], name: str) -> list[float]:
    """Seconds of every candidate after the first."""
    return [getattr(later, name) - getattr(earlier, name) for earlier, later in pairwise(found)]


def searches(groups: Groups) -> None:
    """Hypervolume of whole searches against what they took, and when ours was as far as the naive ones in the end."""
    if not groups:
        return
    unit = kind(next(iter(groups)).case)
    print(f"\nWhole searches; hypervolume of share of MACs and error on the search split, reference {REFERENCE}.\n")
    print(f"| engine | trials | {unit}, all | a trial | {' | '.join(f'after {count}' for count in AFTER)} | in the end |")
    print(f"|---|---|---|---|{'---|' * len(AFTER)}---|")
    for key, found in groups.items():
        volumes = growth(found)
        cells = [f"{volumes[count - 1]:.4f}" if count <= len(volumes) else "–" for count in AFTER]
        each = (seconds(found[-1]) - seconds(found[0])) / max(1, len(found) - 1)
        print(
            f"| {key.engine} | {len(found)} | {seconds(found[-1]):.0f} | {each:.2f} | {' | '.join(cells)} | {volumes[-1]:.4f} |"
        )
    print()
    ours = next((found for key, found in groups.items() if key.engine == "ours"), None)
    for key, found in groups.items():
        if ours is not None and key.engine != "ours":
            print(f"- {reached(ours, growth(found)[-1], found[-1], unit)}")
    by_stage({key.engine: found for key, found in groups.items()}, "a whole search", True)


def growth(found: Sequence[Record]) -> list[float]:
    """The hypervolume after every trial."""
    points = [(record.share, record.error) for record in found]
    return [hypervolume(points[:count], REFERENCE) for count in range(1, len(points) + 1)]


def reached(ours: Sequence[Record], volume: float, end: Record, unit: str) -> str:
    """When ours first had a hypervolume, in a sentence."""
    text = f"The {volume:.4f} of {end.key.engine!r} after {end.number + 1} trials and {seconds(end):.0f} {unit}: ours "
    for record, found in zip(ours, growth(ours), strict=True):
        if found >= volume:
            ratio = seconds(end) / seconds(record)
            return f"{text}has it with trial {record.number + 1}, after {seconds(record):.1f} {unit}: {ratio:.1f} times sooner."
    return f"{text}has not reached it: {growth(ours)[-1]:.4f} after {len(ours)} trials."


def by_stage(columns: Mapping[str, Sequence[Record]], title: str, whole: bool) -> None:
    """Seconds and shares by stage: of all that was done, or of a candidate after the first."""
    times = {}
    for name, found in columns.items():
        last, first = found[-1].seconds, {} if whole else found[0].seconds
        count = 1 if whole else max(1, len(found) - 1)
        times[name] = {stage: (value - first.get(stage, 0.0)) / count for stage, value in last.items() if stage != APART}
    stages = dict.fromkeys(stage for found in times.values() for stage in found)
    stages = {stage: None for stage in stages if any(found.get(stage, 0.0) >= 0.005 for found in times.values())}
    print(f"\nWhere the seconds go, {title}:\n\n| stage | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    totals = {name: sum(found.values()) for name, found in times.items()}
    for stage in stages:
        cells = [f"{found.get(stage, 0.0):.2f} ({found.get(stage, 0.0) / totals[name]:.1%})" for name, found in times.items()]
        print(f"| {stage} | {' | '.join(cells)} |")
    print(f"| all | {' | '.join(f'{total:.2f}' for total in totals.values())} |")


def under_budget(groups: Groups) -> None:
    """Models under one budget."""
    if not groups:
        return
    print("\nOne model under a budget; of the searches the one with the least error on the search split.\n")
    print("| budget | made by | MACs | error, search split | error, test split |\n|---|---|---|---|---|")
    for key, found in groups.items():
        record = found[-1]
        print(f"| {key.budget:g} % | {key.engine} | {record.share:.1%} | {record.error:.2%} | {record.test:.2%} |")
