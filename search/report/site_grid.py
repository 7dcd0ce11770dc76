"""The sensitivity profile, block by site: what the heat maps of the page, the terminal and the picture show."""

from objectives.profile import Errors, Profile
from spaces.sites import Space

SHARES = (0.75, 0.5, 0.25)
Grid = dict[str, dict[str, float]]  # block -> column -> error


def grid_of(errors: Errors, space: Space, share: float) -> Grid:
    """Block -> column (``attn.qk``) -> error of the size nearest to `share` of the site."""
    grid: Grid = {}
    for site in space.sites:
        block, column = site.place
        grid.setdefault(block, {})[column] = errors[site.name][site.nearest(share)]
    return grid


def conditions(profile: Profile) -> str:
    """What a profile was measured on, in a line."""
    if not profile.measured:
        return "closed-form errors, not measured"
    return f"errors measured on {profile.images} calibration images at up to {profile.sizes} sizes of every site"


def format_error(error: float) -> str:
    """0.0123 -> '0.012', 0.000123 -> '1.2e-4'."""
    if error == 0 or error >= 0.01:
        return f"{error:.3g}" if error >= 1 or error == 0 else f"{error:.3f}"
    return f"{error:.1e}".replace("e-0", "e-")
