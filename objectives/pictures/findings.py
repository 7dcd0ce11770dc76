"""What a check of a data set's pictures has found: what is left out, what was made of the rest, and how it is remembered."""

import hashlib
import itertools
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from objectives.pictures.reading import Found, Reading
from objectives.pictures.sources import SplitName
from spaces.errors import printable
from spaces.files import write_text

_NAMED = 3  # in a line
_REPORTED = 10
_DARK = 0.25  # of the range: brighter pictures may be what they are

Extremes = tuple[float, float]
Deep = dict[Extremes, tuple[int, Extremes | None]]


@dataclass
class Group:
    """What was found in pictures that lie together.

    Attributes:
        stamp: digest of which pictures, of what size and time; None where nothing tells.
        bad: place in the group -> why it cannot be read.
        deep: whole range of the type -> how many pictures of more than 8 bits, and the darkest and the brightest value of
            those that were decoded.
        transparent: how many pictures are.
    """

    stamp: str | None = None
    bad: dict[int, str] = field(default_factory=dict)
    deep: Deep = field(default_factory=dict)
    transparent: int = 0

    def add(self, place: int, found: Found) -> None:
        """Count one picture."""
        if found.problem is not None:
            self.bad[place] = found.problem
        if found.deep is not None:
            self.add_deep(found.deep, 1, found.extremes)
        self.transparent += found.transparent

    def add_deep(self, kind: Extremes, count: int, extremes: Extremes | None) -> None:
        """Count pictures of more than 8 bits."""
        before, known = self.deep.get(kind, (0, None))
        both = [pair for pair in (known, extremes) if pair is not None]
        outer = (min(low for low, _ in both), max(high for _, high in both)) if both else None
        self.deep[kind] = before + count, outer

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        deep = [[*kind, count, extremes] for kind, (count, extremes) in self.deep.items()]
        return {"stamp": self.stamp, "bad": self.bad, "deep": deep, "transparent": self.transparent}

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> "Group":
        """Inverse of `to_json`."""
        group = cls(given["stamp"], {int(place): str(why) for place, why in given["bad"].items()})
        for low, high, count, extremes in given["deep"]:
            group.add_deep((float(low), float(high)), int(count), None if extremes is None else (extremes[0], extremes[1]))
        group.transparent = int(given["transparent"])
        return group


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What a check of all splits has found.

    Attributes:
        parts: indices of each split without what cannot be read; None of a stream.
        images: split -> how many pictures it had.
        left_out: split -> name of a file -> why it cannot be read; splits that lack nothing are not there.
        groups: what was found, by where the pictures lie.
        reading: how deep and transparent pictures are read.
        is_new: whether any picture was looked at now.
    """

    parts: dict[SplitName, Tensor | None]
    images: dict[SplitName, int]
    left_out: dict[SplitName, dict[str, str]]
    groups: list[Group]
    reading: Reading
    is_new: bool

    def save(self, path: Path) -> None:
        """Remember it for whoever opens the same pictures next, where anything is new, and the file can be written."""
        content = json.dumps([group.to_json() for group in self.groups if group.stamp is not None])
        if content != "[]" and (self.is_new or not path.exists()):
            with suppress(OSError):
                write_text(path, json.dumps({"sha256": _hash(content), "groups": content}))

    def report(self) -> dict[str, Any]:
        """Split -> how many images were left out, of how many, and the first of them with the reasons."""
        return {
            split: {
                "images": len(bad),
                "of": self.images[split],
                "first": {printable(name): why for name, why in itertools.islice(bad.items(), _REPORTED)},
            }
            for split, bad in self.left_out.items()
        }

    def lines(self) -> list[str]:
        """What was made of deep and of transparent pictures."""
        lines = []
        for kind, (count, _) in sorted(self._deep.items()):
            low, high = self.reading.pixel_range or kind
            what = f"{_pictures(count)} of more than 8 bits"
            lines.append(f"{what}: values from {low:g} to {high:g} are read as black to white (--pixel-range)")
        if count := sum(group.transparent for group in self.groups):
            ground = self.reading.background
            done = "their transparency is dropped" if ground == "ignored" else f"laid over {ground}"
            lines.append(f"{_pictures(count)} with transparent parts: {done} (--background)")
        return lines

    def warnings(self) -> list[str]:
        """What was left out, and ranges of values that do not fit."""
        left_out = [
            f"left out {len(bad):,} of {self.images[split]:,} images of the {split} split, which cannot be read: {first(bad)}"
            for split, bad in self.left_out.items()
        ]
        misfits = (self._misfit(kind, extremes) for kind, (_, extremes) in sorted(self._deep.items()) if extremes)
        return [*left_out, *filter(None, misfits)]

    @property
    def _deep(self) -> Deep:
        total = Group()
        for group in self.groups:
            for kind, (count, extremes) in group.deep.items():
                total.add_deep(kind, count, extremes)
        return total.deep

    def _misfit(self, kind: Extremes, found: Extremes) -> str | None:
        """Why another range would be better for pictures of more than 8 bits, if it would."""
        (low, high), (darkest, brightest) = self.reading.pixel_range or kind, found
        if darkest < low or brightest > high:
            wider = f"--pixel-range {_figure(min(darkest, low))} {_figure(max(brightest, high))}"
            return (
                f"pictures of more than 8 bits have values from {_figure(darkest)} to {_figure(brightest)}: what is outside of "
                f"{_figure(low)} to {_figure(high)} is clamped; {wider} would keep all of it"
            )
        full = 2 ** int(brightest).bit_length() - 1 if high > 1 else brightest
        if low < full <= low + _DARK * (high - low):
            return (
                f"pictures of more than 8 bits have no value above {_figure(brightest)}, far below {_figure(high)}, which is "
                f"read as white: try --pixel-range {_figure(low)} {_figure(full)}"
            )
        return None


def read_groups(path: Path) -> list[Group]:
    """What `Checked.save` has written; nothing where the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["sha256"] != _hash(content["groups"]):
            return []
        return [Group.from_json(entry) for entry in json.loads(content["groups"])]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []


def first(bad: Mapping[str, str]) -> str:
    """The first few of what cannot be read, with the reasons."""
    named = [f"{printable(name)} ({why})" for name, why in itertools.islice(bad.items(), _NAMED)]
    return ", ".join(named) + (f" and {len(bad) - _NAMED:,} more" if len(bad) > _NAMED else "")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _pictures(count: int) -> str:
    return f"{count:,} picture{'' if count == 1 else 's'}"


def _figure(value: float) -> str:
    return f"{value:.6g}" if value % 1 else f"{value:.0f}"
