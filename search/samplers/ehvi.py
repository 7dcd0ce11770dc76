"""Expected growth of the hypervolume by candidates whose cost is known and whose error is normal (Emmerich et al. 2006)."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from search.pareto import staircase

Floats = NDArray[np.float64]


def expected_gain(
    loads: Floats,
    means: Floats,
    spreads: Floats,
    tried_loads: Floats,
    tried_errors: Floats,
    reference: tuple[float, float],
) -> Floats:
    """Expected growth of the hypervolume by each candidate.

    The front is a staircase over the load: above each stair, the expected improvement of the error, times the width.

    Args:
        loads, means, spreads: of candidates, [candidates].
        tried_loads, tried_errors: of what is there already, [tried]; all finite.
        reference: load and error of the reference point.
    """
    front = staircase(tried_loads, tried_errors) if len(tried_loads) else np.zeros(0, dtype=int)
    edges = np.concatenate([[-np.inf], tried_loads[front], [reference[0]]])
    stairs = np.concatenate([[reference[1]], np.minimum(tried_errors[front], reference[1])])
    widths = np.maximum(np.minimum(edges[1:], reference[0]) - np.maximum(edges[:-1], loads[:, None]), 0.0)
    deviation = np.maximum(spreads, 1e-9)[:, None]
    normal = (stairs - means[:, None]) / deviation
    density = np.exp(-0.5 * normal**2) / np.sqrt(2 * np.pi)
    return (widths * deviation * (normal * ndtr(normal) + density)).sum(1)  # type: ignore[no-any-return]
