"""How large an audit is."""

from search.config import LEAST_AUDITED
from spaces.errors import ConfigError


def check_size(points: int, factor: int, seeds: int) -> None:
    """Raise unless an audit of this size can tell anything.

    Raises:
        ConfigError: fewer than three points, two seeds or twice the steps.
    """
    for name, value, least in (("points", points, LEAST_AUDITED), ("factor", factor, 2), ("seeds", seeds, 2)):
        if value < least:
            raise ConfigError(f"{name} of an audit must be at least {least}, got {value}")
