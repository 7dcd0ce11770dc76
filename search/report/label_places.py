"""Where the labels of points stand: beside their points, and over no other label or point."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]
Place = tuple[float, float]

# Where a label may stand beside its point, best first: Plotly's name -> offset in points and alignment for matplotlib.
PLACES = {
    "top right": (5, 4, "left", "bottom"),
    "bottom left": (-5, -4, "right", "top"),
    "top left": (-5, 4, "right", "bottom"),
    "bottom right": (5, -4, "left", "top"),
}
# Assumed width of a label's character, as a share of the axes, on a wide screen and on a telephone.
_CHARACTERS = {"wide": 0.013, "narrow": 0.025}
# Distance, as a share of the axes, below which two baselines share a label.
_NEAR = 0.04


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The texts beside the baselines, '' for none, and where each stands: one of `PLACES`."""

    text: list[str]
    textposition: list[str]


def placed_labels(names: Sequence[str], points: Sequence[Place], others: Sequence[Place]) -> dict[str, Labels]:
    """Labels for a wide and for a narrow screen, each placed where it covers no label and no point; '' where all places do.

    Points that nearly coincide share one label, on the first of them.

    Args:
        names: of the points.
        points: where these are, as shares of the axes.
        others: where nothing may be covered either.
    """
    return {screen: _placed(names, points, others, width) for screen, width in _CHARACTERS.items()}


def _placed(names: Sequence[str], points: Sequence[Place], others: Sequence[Place], width: float) -> Labels:
    taken = [(x - 0.01, y - 0.01, x + 0.01, y + 0.01) for x, y in (*points, *others)]
    labels = Labels(text=[""] * len(names), textposition=["top right"] * len(names))
    for group in _groups(points):
        together = ", ".join(dict.fromkeys(names[index] for index in group))
        if len(group) > 1 and (place := _place(points[group[0]], width * len(together), taken)):
            labels.text[group[0]], labels.textposition[group[0]] = html.escape(together), place
            continue
        for index in group:
            if place := _place(points[index], width * len(names[index]), taken):
                labels.text[index], labels.textposition[index] = html.escape(names[index]), place
    return labels


def _groups(points: Sequence[Place]) -> list[list[int]]:
    """Indices of points that lie so near to each other that they share a label."""
    groups: list[list[int]] = []
    for index, (x, y) in enumerate(points):
        near = (group for group in groups if abs(points[group[0]][0] - x) < _NEAR and abs(points[group[0]][1] - y) < _NEAR)
        group = next(near, None)
        if group is None:
            groups.append([index])
        else:
            group.append(index)
    return groups


def _place(point: Place, width: float, taken: list[Box]) -> str | None:
    """Where a label of this width covers nothing that is `taken`, to which it is added; None if there is no such place."""
    for place in PLACES:
        box = _box(*point, width, place)
        if _is_free(box, taken):
            taken.append(box)
            return place
    return None


def _box(x: float, y: float, width: float, place: str, height: float = 0.055) -> Box:
    left = x + 0.012 if "right" in place else x - 0.012 - width
    low = y + 0.012 if "top" in place else y - 0.012 - height
    return left, low, left + width, low + height


def _is_free(box: Box, taken: Sequence[Box]) -> bool:
    if min(box) < 0.0 or max(box) > 1.0:
        return False
    return all(box[2] <= other[0] or other[2] <= box[0] or box[3] <= other[1] or other[3] <= box[1] for other in taken)
