"""What merging tokens and leaving out branches loses, measured: what widths are chosen inside."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from spaces.allocation import Allocation
from spaces.errors import CheckpointError
from spaces.files import write_json
from spaces.schema import TEXT, WHOLE, Each, Kind, check, read_json
from spaces.sites import DROP, Space

_FORMAT = 2
_ERROR = Kind("a number of nats, 0 or more", lambda value: isinstance(value, int | float) and 0 <= value < 1e18)
_CONTENT = {
    "images": WHOLE, "schedules": [{"tokens": [WHOLE], "error": _ERROR}], "dropped": [{"branch": TEXT, "error": _ERROR}],
    "widths": [{"sizes": Each(WHOLE), "error": _ERROR}],
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MeasuredFrames:
    """Divergences from the dense model, in nats, with dense widths; and those of some widths.

    In a model without classes: half the squared change of the features, summed over an image.

    Attributes:
        schedules: patch tokens that leave the attention of every block -> divergence; in descending order of MACs, and first of
            all the schedule that loses nothing.
        dropped: paths of branches in the order in which they are left out -> divergence without it and all before it, measured
            together.
        images: calibration images that were measured on; without any, there are no more than the schedule that loses nothing.
        widths: allocations with all tokens and branches -> divergence: the scale of errors in closed form.
    """

    schedules: Mapping[tuple[int, ...], float]
    dropped: Mapping[str, float]
    images: int
    widths: Mapping[Allocation, float] = field(default_factory=dict)

    def save(self, path: Path, fingerprint: str) -> None:
        """Write them atomically as JSON."""
        schedules = [{"tokens": list(schedule), "error": error} for schedule, error in self.schedules.items()]
        dropped = [{"branch": branch, "error": error} for branch, error in self.dropped.items()]
        widths = [{"sizes": dict(allocation), "error": error} for allocation, error in self.widths.items()]
        content = {"images": self.images, "schedules": schedules, "dropped": dropped, "widths": widths}
        write_json(path, {"format": _FORMAT, "fingerprint": fingerprint, **content})

    @classmethod
    def load(cls, path: Path, fingerprint: str, space: Space) -> "MeasuredFrames | None":
        """Inverse of `save`; None where the file is of another format or of other factors than `fingerprint`.

        Args:
            path: the file.
            fingerprint: of the factors.
            space: whose schedules and branches they must be.

        Raises:
            CheckpointError: the file is unreadable, or is not of this space.
        """
        try:
            content = read_json(path, {"format": WHOLE, "fingerprint": TEXT})
            if (content["format"], content["fingerprint"]) != (_FORMAT, fingerprint):
                return None
            check(content, _CONTENT)
            frames = cls(
                schedules={tuple(entry["tokens"]): float(entry["error"]) for entry in content["schedules"]},
                dropped={entry["branch"]: float(entry["error"]) for entry in content["dropped"]},
                images=content["images"],
                widths={Allocation(entry["sizes"]): float(entry["error"]) for entry in content["widths"]},
            )
            _check_space(frames, space)
            return frames
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}): delete the file to measure it again") from error


def frames_name(fingerprint: str, tokens: bool, drop: bool) -> str:
    """Name of the file of measured frames, in the folder of the factors that they were measured with.

    Args:
        fingerprint: of the factors.
        tokens: whether schedules were measured.
        drop: whether sets of branches were.
    """
    parts = [name for name, measured in (("tokens", tokens), ("branches", drop)) if measured]
    return ".".join((fingerprint, *parts, "frames.json"))


def _check_space(frames: MeasuredFrames, space: Space) -> None:
    """Raise unless frames are those of a space.

    Raises:
        ValueError: a schedule or a branch is none of it, or the first schedule loses something.
    """
    lossless = space.lossless()
    if next(iter(frames.schedules.items()), None) != (space.schedule(lossless), 0.0):
        raise ValueError("the first of schedules must be that of the model which merges nothing, with error 0")
    for schedule in frames.schedules:
        if len(schedule) != len(space.tokens):
            raise ValueError(f"schedules has one of {len(schedule)} blocks, the model has {len(space.tokens)}")
        space.validate(lossless.replace(space.scheduled(schedule)))
    for allocation in frames.widths:
        space.validate(allocation)
    for branch in frames.dropped:
        if not any(operator.name == DROP for operator in space.branches.get(branch, ())):
            raise ValueError(f"dropped has {branch[:100]!r}, which cannot be left out")
