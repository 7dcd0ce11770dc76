"""What is said of pictures in options: modes, backgrounds and ranges of values, and their checks."""

import math
from collections.abc import Sequence
from typing import Literal

from spaces.errors import ConfigError

Mode = Literal["L", "RGB"]

Background = Literal["white", "black", "grey", "ignored"]


def check_pixel_range(given: Sequence[float] | None) -> None:
    """Raise unless it is None, or two finite values in ascending order.

    Raises:
        ConfigError: it is not.
    """
    if given is not None and not (len(given) == 2 and -math.inf < given[0] < given[1] < math.inf):
        raise ConfigError(f"pixel_range must be two values low < high, got {list(given)}")
