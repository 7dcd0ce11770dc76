"""Profile: what every size of every site costs by itself, in closed form, corrected where it was measured."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from spaces.errors import CheckpointError
from spaces.files import write_json
from spaces.schema import SIZE, TEXT, WHOLE, Each, Kind, check, read_json
from spaces.sites import Space

Errors = Mapping[str, Mapping[int, float]]
SIZES = 3
_FORMAT = 1
_ERROR = Kind("a number of nats, 0 or more", lambda value: isinstance(value, int | float) and 0 <= value < 1e18)

# Largest |log(measured / closed form)| that is believed: beyond it a divergence is numerical noise, or zero.
_CLAMP = 3.0


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Errors of every size of every site, other sites dense, in nats of divergence from the dense model.

    In a model without classes: half the squared change of the features, summed over an image.

    Attributes:
        closed: site name -> size -> closed-form error (`Factors.error`).
        measured: site name -> size -> mean divergence, at the sizes that were measured; no site where `images` is 0.
        images: calibration images that were measured on.
        sizes: at most so many sizes of a site were measured.
    """

    closed: Errors
    measured: Errors
    images: int
    sizes: int = SIZES

    @cached_property
    def errors(self) -> Errors:
        """Site name -> size -> closed-form error times measured over closed form.

        This ratio is a line in the logarithm of the closed-form error between the measured sizes, and constant outside. Errors
        never grow with the size and are 0 at the dense one.
        """
        return {name: _corrected(closed, self.measured.get(name, {})) for name, closed in self.closed.items()}

    def save(self, path: Path, fingerprint: str) -> None:
        """Write it atomically as JSON; the corrected errors follow from the rest."""
        write_json(path, {"format": _FORMAT, "fingerprint": fingerprint, **asdict(self)})

    @classmethod
    def load(cls, path: Path, fingerprint: str, space: Space | None = None) -> "Profile | None":
        """Inverse of `save`; None where the file is of another format or of other factors than `fingerprint`.

        Args:
            path: the file.
            fingerprint: of the factors.
            space: whose sites and sizes it must have, where that is known.

        Raises:
            CheckpointError: the file is unreadable.
        """
        try:
            content = read_json(path, {"format": WHOLE, "fingerprint": TEXT})
            if (content["format"], content["fingerprint"]) != (_FORMAT, fingerprint):
                return None
            errors = Each(Each(_ERROR))
            check(content, {"closed": errors, "measured": errors, "images": WHOLE, "sizes": SIZE})
            closed, measured = (_errors(content[name]) for name in ("closed", "measured"))
            _check_sites(closed, measured, space)
            return cls(closed=closed, measured=measured, images=content["images"], sizes=content["sizes"])
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"sensitivity profile {path} cannot be read ({error}): delete the file to measure it again"
            ) from error


def profile_name(fingerprint: str) -> str:
    """Name of the file of a profile, in the folder of the factors that it was measured with."""
    return f"{fingerprint}.profile.json"


def _corrected(closed: Mapping[int, float], measured: Mapping[int, float]) -> dict[int, float]:
    """Closed-form errors of one site, corrected by its measured ones."""
    points = sorted((math.log(closed[size]), _log_ratio(value, closed[size])) for size, value in measured.items())
    levels, ratios = zip(*points, strict=True) if points else ((0.0,), (0.0,))
    corrected, largest = {}, 0.0
    for size, error in sorted(closed.items(), reverse=True):
        if error > 0:
            largest = max(largest, error * math.exp(np.interp(math.log(error), levels, ratios)))
        corrected[size] = largest
    return dict(sorted(corrected.items()))


def _log_ratio(measured: float, closed: float) -> float:
    return min(_CLAMP, max(-_CLAMP, math.log(measured / closed))) if measured > 0 else -_CLAMP


def _errors(content: Mapping[str, Mapping[str, float]]) -> Errors:
    """Site name -> size -> error, of JSON, whose keys are text."""
    return {name: {int(size): float(error) for size, error in errors.items()} for name, errors in content.items()}


def _check_sites(closed: Errors, measured: Errors, space: Space | None) -> None:
    """Raise unless errors are those of sites, and of those of a space where it is known.

    Raises:
        ValueError: a site or a size is missing or unknown.
    """
    for name, sizes in measured.items():
        if any(closed.get(name, {}).get(size, 0) <= 0 for size in sizes):
            raise ValueError(f"measured.{name} has sizes without a closed-form error")
    sites = {} if space is None else {site.name: list(site.choices) for site in space.sites}
    if space is not None and {name: list(errors) for name, errors in closed.items()} != sites:
        raise ValueError("closed has not the sites and the sizes of the model")
