"""What an operator consists of: all that the rest of the project asks it for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from spaces.branches import Branch
from spaces.sites import Kind, Site, Skipped
from spaces.statistics import Moments

Tensors = dict[str, Tensor]  # factors of one site
Sizes = Mapping[str, int]  # of the sites of a branch, by the part of it that they are called
Count = tuple[int, int]  # MACs, parameters

Compute = Callable[[nn.Module, Site, Moments | None, torch.device], Tensors]
Slice = Callable[[nn.Module, Site, Tensor], Tensors]
FoundSites = tuple[list[Site], list[Skipped]]  # offered and not
FindSites = Callable[[Branch, int], FoundSites]
Resize = Callable[[nn.Module, str, Sizes, Sizes], None]
Fill = Callable[[nn.Module, nn.Module, str, Sizes, Mapping[str, Tensors]], None]
Cost = Callable[[nn.Module, Sequence[Site], "Tokens"], Callable[[Sizes], Count]]

NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The tokens of an image in one block.

    Attributes:
        prefix: tokens that are none of patches.
        entering: patch tokens that enter the block.
        leaving: patch tokens that leave its attention. 0: nothing is computed for patch tokens but their keys and values.
    """

    prefix: int
    entering: int
    leaving: int

    @property
    def seen(self) -> int:
        """Tokens that attention has keys and values of."""
        return self.prefix + self.entering

    @property
    def asked(self) -> int:
        """Tokens that attention computes queries and outputs of."""
        return self.seen if self.leaving else self.prefix

    @property
    def left(self) -> int:
        """Tokens that the FFN sees."""
        return self.prefix + self.leaving

    @property
    def compared(self) -> int:
        """Pairs of patch tokens whose similarity is computed: every other one with the rest, if any are merged."""
        return (self.entering // 2) * -(-self.entering // 2) if self._merged else 0

    @property
    def assigned(self) -> int:
        """Entries of the matrix that assigns merged tokens to those that they are merged into."""
        return self.leaving * self._merged

    @property
    def _merged(self) -> int:
        return self.entering - self.leaving if self.leaving else 0


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to compute the factors of a kind of site.

    Attributes:
        compute: (dense model, site, moments of `registry.input_of` it or None, device) -> tensors.
        needs: what of the calibration images it uses: nothing, or "moments", and with them "heads" (moments of queries and
            keys) or "saliency".
    """

    compute: Compute
    needs: frozenset[str] = field(default_factory=lambda: frozenset({"moments"}))


@dataclass(frozen=True, kw_only=True)
class SiteKind:
    """What is the same for all sites of one kind, whichever operator moves them.

    All ways to compute factors give the same tensors, so that an operator fills a model from any of them.

    Attributes:
        counts: what a size counts, as people are told.
        readers: linear layers of a branch that read what is kept, the first that it has; none where a site is itself a linear.
        variants: name -> way to compute the factors; the first one is the engine's own. Empty if only recipes make such sites.
        select: (dense model, site, importance) -> factors that keep what is most important, with no correction; None where
            nothing can be kept by importance.
    """

    counts: str
    readers: tuple[str, ...] = ()
    variants: Mapping[str, Variant] = field(default_factory=dict)
    select: Slice | None = None


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How the time of an operator's sites is measured.

    Attributes:
        together: whether its sites act on each other. If so, all combinations of sizes are timed, else one site at a time.
        continuous: whether the dense size continues the smaller ones. A linear layer of any rank below its dense one is two.
        paired: two parts whose sizes should be equal, since a slower computation takes over where they differ.
    """

    together: bool = True
    continuous: bool = True
    paired: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class OperatorSpec:
    """One operator: a way to make a branch smaller.

    Attributes:
        name: as spaces and tables have it.
        sites: (branch, multiple) -> the sites that it has there, and the places that it has not, with the reason.
        resize: (model, path of the branch, sizes, those that are not dense) gives the branch the structure of these sizes, in
            place; linears whose shape changes get uninitialised weights.
        fill: (dense model, resized model, path of the branch, sizes, factors by part) writes the weights. None where the
            recipe that trains such a branch writes them.
        cost: (dense branch, sites, tokens of its block) -> MACs and parameters of the branch as a function of the sizes, up to
            constants.
        kinds: kinds of sites that this operator brings; it may use those of other operators too.
        timing: how the time of its sites is measured.
    """

    name: str
    sites: FindSites
    resize: Resize
    fill: Fill | None
    cost: Cost
    kinds: Mapping[Kind, SiteKind] = field(default_factory=dict)
    timing: Timing = field(default_factory=Timing)


def widths(dense: int, step: int) -> tuple[int, ...]:
    """Multiples of `step` below the dense size, and the dense size."""
    return (*range(step, dense, step), dense)
