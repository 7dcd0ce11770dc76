"""Every picture of every split looked at once, before anything is computed: what cannot be read is left out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from objectives.pictures.findings import Checked, Group, first, read_groups
from objectives.pictures.reading import Found, Reading, quiet
from objectives.pictures.sources import Pictures, SplitName
from objectives.runtime.progress import Progress
from spaces.errors import DataError

CHECKED = "pictures.json"
MOST_LEFT_OUT = 0.05  # of a split: more is no accident
DECODED = 20_000  # training pictures: of more, not all are decoded
_CHUNK = 64  # pictures that a thread takes at once

T = TypeVar("T")
R = TypeVar("R")
_Look = tuple[SplitName, int, bool]  # split, index in its data set, whether all of it is decoded


def check_pictures(
    pictures: Mapping[SplitName, Pictures],
    parts: Mapping[SplitName, Tensor | None],
    reading: Reading,
    stored: Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Checked:
    """Look at every picture of every split; unchanged ones that `stored` knows are not looked at again.

    All of a picture is decoded in the search and the test split, and in a training split of up to `DECODED`. Of larger ones
    the header is read, and all of a picture only where its end is not what a whole file of its format has.

    Args:
        pictures: of each split that is to be checked.
        parts: indices of each split, drawn from all of its files: so files that cannot be read move no image to another split.
        reading: how they will be read.
        stored: where an earlier check was saved; those of runs beside this one are known too.
        progress: called with ("pictures", done, in all).

    Raises:
        DataError: more than 5 % of a split cannot be read, or a file for a reason that is not its own.
    """
    looks = _grouped(pictures, parts)
    stamps = _mapped(lambda key: _stamp(pictures, key, looks[key]), list(looks))
    groups = {key: Group(stamp) for key, stamp in zip(looks, stamps, strict=True)}
    known = _known(stored, groups)
    todo = [(key, place) for key in groups if key not in known for place in range(len(looks[key]))]

    def look(entry: tuple[str, int]) -> Found:
        split, index, decode = looks[entry[0]][entry[1]]
        return pictures[split].probe(index, reading, decode)

    threads = all(source.threads for source in pictures.values())
    with quiet():
        found = _mapped(look, todo) if threads else map(look, todo)
        for count, ((key, place), each) in enumerate(zip(todo, found, strict=True), start=1):
            groups[key].add(place, each)
            if count % _CHUNK == 0 or count == len(todo):
                progress("pictures", count, len(todo))
    groups.update(known)
    return _without_bad(pictures, parts, looks, groups, reading, bool(todo))


def _grouped(pictures: Mapping[SplitName, Pictures], parts: Mapping[SplitName, Tensor | None]) -> dict[str, list[_Look]]:
    """The pictures of all splits by where they lie."""
    looks: dict[str, list[_Look]] = {}
    for split, source in pictures.items():
        part = parts[split]
        assert part is not None
        decode = split != "train" or len(part) <= DECODED
        for index in part.tolist():
            looks.setdefault(source.group(index), []).append((split, index, decode))
    return looks


def _stamp(pictures: Mapping[SplitName, Pictures], key: str, looks: Sequence[_Look]) -> str | None:
    """Digest of the pictures of a group; None where nothing tells."""
    stamps: list[str] = []
    for source in dict.fromkeys(pictures.values()):
        if own := [(index, decode) for split, index, decode in looks if pictures[split] is source]:
            stamp = source.stamp(key, own)
            if stamp is None:
                return None
            stamps.append(stamp)
    return " ".join(stamps)


def _known(stored: Path | None, groups: Mapping[str, Group]) -> dict[str, Group]:
    """Of these groups, those that this run has found before, or one beside it."""
    known: dict[str, Group] = {}
    if stored is None:
        return known
    keys = {group.stamp: key for key, group in groups.items() if group.stamp is not None}
    for path in (stored, *stored.parent.parent.parent.glob(f"*/{stored.parent.name}/{stored.name}")):
        if len(known) == len(groups):
            break
        known.update({keys[group.stamp]: group for group in read_groups(path) if group.stamp in keys})
    return known


def _mapped(call: Callable[[T], R], entries: Sequence[T]) -> Iterator[R]:
    """As `map`, by several threads; what is left is dropped where one raises."""
    size = max(1, min(_CHUNK, len(entries) // 16))
    chunks = [entries[start : start + size] for start in range(0, len(entries), size)]
    pool = ThreadPoolExecutor()
    try:
        for results in pool.map(lambda chunk: [call(entry) for entry in chunk], chunks):
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)


def _without_bad(
    pictures: Mapping[SplitName, Pictures],
    parts: Mapping[SplitName, Tensor | None],
    looks: Mapping[str, Sequence[_Look]],
    groups: Mapping[str, Group],
    reading: Reading,
    is_new: bool,
) -> Checked:
    bad: dict[SplitName, dict[int, str]] = {}
    for key, group in groups.items():
        for place, why in group.bad.items():
            split, index, _ = looks[key][place]
            bad.setdefault(split, {})[index] = why
    left, left_out = dict(parts), dict[SplitName, dict[str, str]]()
    for split in sorted(bad, reverse=True):  # train first
        part = parts[split]
        assert part is not None
        left[split] = part[~torch.isin(part, torch.tensor(list(bad[split])))]
        left_out[split] = {pictures[split].name(index): why for index, why in sorted(bad[split].items())}
        _refuse_many(split, left_out[split], len(part))
    images = {split: len(part) for split, part in parts.items() if part is not None}
    return Checked(
        parts=left, images=images, left_out=left_out, groups=list(groups.values()), reading=reading, is_new=is_new
    )  # fmt: skip


def _refuse_many(split: SplitName, bad: Mapping[str, str], images: int) -> None:
    if len(bad) > MOST_LEFT_OUT * images:
        raise DataError(
            f"{len(bad):,} of {images:,} images of the {split} split cannot be read, more than {MOST_LEFT_OUT:.0%}: "
            f"{first(bad)}; repair or remove them"
        )
