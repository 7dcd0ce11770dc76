"""How the time of a model's blocks follows their numbers of patch tokens."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, get_args

from objectives.latency.grid import Grid
from spaces.operators.registry import OPERATORS
from spaces.schema import NUMBER, WHOLE, choice
from spaces.sites import Operator, Role, Space
from spaces.tokens.schedules import Schedule

AXIS = "tokens"  # of the grids
PARTS = (*get_args(Role), "rest")  # of a block
_FIGURES = ("reading", "merging", "matched", "weighed")
TOKENS = {
    "counts": [WHOLE],
    "blocks": {part: [NUMBER] for part in PARTS},
    "saved": [{"operator": choice(*OPERATORS), "role": choice(*get_args(Role)), "share": [NUMBER]}],
    **dict.fromkeys(_FIGURES, NUMBER),
}  # schema of these times in a file


class Place(NamedTuple):
    """One block within a schedule: the patch tokens that enter it, and those that leave its attention."""

    entering: int
    leaving: int


@dataclass(frozen=True, kw_only=True)
class TokenTimes:
    """How the time of a model's blocks follows their numbers of patch tokens, which is the same for all blocks.

    Attributes:
        blocks: attention, ffn and rest (norms, sums) -> share of the dense model's latency that they have in all blocks
            together, over the patch tokens of these. Attention and FFN are what dropping them saves.
        saved: operator, role -> share that stays of what the operator saves in such a branch, over its patch tokens.
        reading: share of attention's time that depends on its tokens, and stays where queries are of prefix tokens alone.
        merging: share of the dense model's latency that a block takes to merge tokens, whatever their number.
        matched: the same per patch token that enters such a block, times all patch tokens.
        weighed: of attention's time, the share that comes on top where tokens have sizes.
    """

    blocks: Mapping[str, Grid]
    saved: Mapping[tuple[str, str], Grid]
    reading: float
    merging: float
    matched: float
    weighed: float

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Numbers of patch tokens that were measured, the last one all of them."""
        return self.blocks["rest"].axes[AXIS]

    def whole(self, schedule: Schedule) -> float:
        """Latency of a model with all branches dense within a schedule, as a share of the dense model's."""
        patches = self.counts[-1]
        own = sum(self._part(part, place) for place in places(schedule, patches) for part in PARTS)
        dense = sum(self.blocks[part].at({AXIS: patches}) for part in PARTS)
        merging, matched, weighed = self.added(schedule)
        return 1 + own / len(schedule) - dense + merging * self.merging + matched * self.matched + weighed * self.weighed

    def added(self, schedule: Schedule) -> tuple[float, float, float]:
        """What a schedule adds to its blocks: how many merge tokens; of all patch tokens, the share that enters these, summed;
        the time of attention where tokens have sizes, as a share of the dense model's."""
        found, patches = list(places(schedule, self.counts[-1])), self.counts[-1]
        merging = [place.entering for place in found if 0 < place.leaving < place.entering]
        weighed = [self.blocks["attention"].at({AXIS: place.entering}) for place in found if place.entering < patches]
        return len(merging), sum(merging) / patches, sum(weighed) / len(found)

    def stays(self, operator: str, role: Role, place: Place) -> float:
        """Share that stays of what an operator saves in a branch."""
        grid = self.saved[operator, role]
        weighed = role == "attention" and place.entering < self.counts[-1]
        return self._in_branch(grid, role, place) + (self.weighed * grid.at({AXIS: place.entering}) if weighed else 0.0)

    def check(self, space: Space) -> None:
        """Raise unless there is a figure for every schedule and operator of a space.

        Raises:
            ValueError: something is missing, or is of other tokens.
        """
        if self.counts[-1:] != (space.tokens[0].dense,):
            raise ValueError(f"its blocks have not {space.tokens[0].dense} patch tokens")
        for path, rivals in space.branches.items():
            for operator in rivals:
                if (operator.name, space.roles[path]) not in self.saved:
                    raise ValueError(f"it has not what {operator.name} saves at other tokens")

    def to_json(self) -> dict[str, Any]:
        """As `TOKENS` says."""
        return {
            "counts": list(self.counts),
            "blocks": {part: grid.saved.tolist() for part, grid in self.blocks.items()},
            "saved": [
                {"operator": name, "role": role, "share": grid.saved.tolist()} for (name, role), grid in self.saved.items()
            ],
            **{name: getattr(self, name) for name in _FIGURES},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "TokenTimes":
        """Inverse of `to_json`.

        Raises:
            ValueError: there is not one figure for every number of tokens.
        """

        def grid(figures: Sequence[float]) -> Grid:
            return Grid.from_json({"axes": {AXIS: content["counts"]}, "saved": figures})

        return cls(
            blocks={part: grid(content["blocks"][part]) for part in PARTS},
            saved={(entry["operator"], entry["role"]): grid(entry["share"]) for entry in content["saved"]},
            **{name: content[name] for name in _FIGURES},
        )

    def _part(self, part: str, place: Place) -> float:
        if part == "rest":
            return self.blocks[part].at({AXIS: (place.entering + place.leaving) / 2})
        return self._in_branch(self.blocks[part], part, place)

    def _in_branch(self, grid: Grid, role: str, place: Place) -> float:
        """A figure of a branch: attention sees the tokens that enter the block, the FFN those that leave attention."""
        if role != "attention":
            return grid.at({AXIS: place.leaving})
        if place.leaving:
            return grid.at({AXIS: place.entering})
        alone = grid.at({AXIS: 0})
        return alone + self.reading * (grid.at({AXIS: place.entering}) - alone)


def places(schedule: Sequence[int], patches: int) -> Iterator[Place]:
    """The blocks of a schedule of so many patch tokens."""
    return (Place(*counts) for counts in pairwise((patches, *schedule)))


def place_of(operator: Operator, schedule: Sequence[int], patches: int) -> Place:
    """The block of an operator's branch."""
    block = int(operator.branch.split(".")[1])
    return Place(schedule[block - 1] if block else patches, schedule[block])
