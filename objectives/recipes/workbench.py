"""What a recipe works with: the dense model, the budget, and its share of the optimiser steps."""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

from torch import Tensor, nn

from objectives.cost.closed_form import CostModel, cost_model
from objectives.cost.spec import Cost
from objectives.dense_model import DenseModel
from objectives.evaluator import OnStep
from objectives.runtime.progress import Step
from objectives.training.batch import Batch
from objectives.training.finetune import finetune
from spaces.allocation import Allocation
from spaces.sites import Kind, Site, Space
from spaces.vit import describe


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What a recipe makes of the dense model before the fine-tune: a compressed model, and the sizes that it has."""

    model: nn.Module
    allocation: Allocation


class Workbench:
    """One recipe's view of the dense model.

    Args:
        dense: what all candidates share: model, images, factors and the options of the fine-tune.
        space: name of the space that the recipe's allocations are of.
        kinds: kinds of sites that the recipe moves; None for all of the space. No recipe drops branches or merges tokens.
        limits: cost -> upper bound; counted costs alone.
        steps: optimiser steps that the recipe may spend before the cut.
        seed: of its batches.
        on_step: called after every optimiser step.
        parts: how many every batch is split in.

    Attributes:
        model: the dense model, on the CPU; not to be changed.
        space: the space, described for the dense model.
        cuts: the sites of the space that make a branch smaller; the others leave it out.
        sites: those of them that the recipe moves.
        batches: training batches; what the recipe does not take is left for the fine-tune.
    """

    def __init__(
        self,
        dense: DenseModel,
        space: str,
        kinds: Collection[Kind] | None,
        limits: Mapping[Cost, float],
        steps: int,
        seed: int,
        on_step: OnStep,
        parts: int = 1,
    ) -> None:
        self.dense = dense
        self.model = dense.model
        self.space: Space = describe(dense.model, space, dense.objective.multiple)
        self.cuts = [site for site in self.space.sites if site.kind != "branch"]
        self.sites = [site for site in self.cuts if kinds is None or site.kind in kinds]
        self.costs: CostModel = cost_model(dense.model, self.space)
        self.limits = limits
        self.steps = steps
        self._seed = seed
        self._on_step = on_step
        self._parts = parts

    @cached_property
    def batches(self) -> Iterator[Batch]:
        return self.dense.batches.training(self.dense.objective.finetune.steps, self._seed, parts=self._parts)

    def load(self, allocation: Allocation) -> float:
        """How much of the budget an allocation uses; 1 is all of it."""
        return self.costs.load(allocation, self.limits)

    def fit(
        self, wanted: Callable[[Site, float], float], sites: Sequence[Site] | None = None, base: Allocation | None = None
    ) -> Allocation:
        """The allocation on the budget whose sizes follow `wanted(site, level)`; see `spaces.sites.Space.fit`.

        Args:
            wanted: share that a site should keep at a level.
            sites: those that move; by default all that the recipe moves.
            base: sizes of the others.
        """
        return self.space.fit(1.0, self.load, self.sites if sites is None else sites, wanted, base)

    def smallest(self) -> Allocation:
        """The smallest allocation that the recipe can make."""
        return self.space.lossless().replace({site.name: site.choices[0] for site in self.sites})

    def copy(self) -> nn.Module:
        """A copy of the dense model to train, on the device."""
        return copy.deepcopy(self.model).to(self.dense.device)

    def train(self, model: nn.Module, penalty: Callable[[], Tensor] | None = None) -> Iterator[Step]:
        """Train for the recipe's share of the steps, as candidates are fine-tuned; one step per value taken."""
        if not self.steps:
            return
        config = replace(self.dense.objective.finetune, steps=self.steps)
        batches = islice(self.batches, self.steps)
        for step in finetune(model, batches, config, penalty, self._parts):
            self._on_step(step)
            yield step
