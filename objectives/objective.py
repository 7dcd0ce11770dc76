"""What candidates of one search are measured by: a picklable value, from which any worker loads the dense model."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from objectives.data.config import DataConfig
from objectives.latency.config import LatencyConfig
from objectives.training.config import FinetuneConfig
from objectives.training.rate import settled
from spaces.models.config import ModelConfig
from spaces.sites import SpaceName

SplitBefore = Literal["train", "search"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What candidates of one search are measured by.

    Attributes:
        model: the dense model.
        data: the images.
        finetune: the short fine-tune of every candidate.
        space: which operators are offered.
        tokens: whether schedules of merged tokens are searched, and so measured for the profile.
        drop: whether dropped branches are.
        multiple: what FFN widths and ranks are multiples of.
        rungs: shares of the fine-tune's steps after which a candidate's error is measured.
        measure_before: whether candidates are measured on the search split as built, too.
        factors: folder of the factors and the profile; taken from a sister folder of another run where that has them, else
            computed.
        latency: how a table of latencies is measured, which lies beside the factors' folder; there is none if None.
        device: cpu, cuda, cuda:1, mps; auto takes a GPU if there is one.
        seed: of every fine-tune.
        cache: GB that what all trials read may take in the run directory; None for a share of what is free, 0 for nothing.
    """

    model: ModelConfig
    data: DataConfig
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    space: SpaceName = "contract"
    tokens: bool = True
    drop: bool = True
    multiple: int = 8
    rungs: tuple[float, ...] = ()
    measure_before: bool = False
    factors: Path
    latency: LatencyConfig | None = None
    device: str = "auto"
    seed: int = 0
    cache: float | None = None

    @property
    def settled(self) -> "Objective":
        """The same with the learning rate that the run beside the factors has probed, where none is given and it has.

        Raises:
            RunError: the run's rate cannot be read.
        """
        finetune = settled(self.finetune, self.factors.parent)
        return self if finetune == self.finetune else replace(self, finetune=finetune)

    @property
    def split_before(self) -> SplitBefore:
        """Split of the images that candidates are measured on as built.

        `train`: the images of the profile. `search`: asked for, or none are set aside for the profile, or the candidate as
        built is the result, since nothing is trained.
        """
        on_search = self.measure_before or not self.data.profile_images or not self.finetune.steps
        return "search" if on_search else "train"

    @property
    def rung_steps(self) -> set[int]:
        """Optimiser steps after which a candidate's error is measured, all of them before the last one."""
        steps = self.finetune.steps
        return {round(share * steps) for share in self.rungs} & set(range(1, steps))
