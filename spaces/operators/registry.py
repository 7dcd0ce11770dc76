"""The operators, the kinds of sites that they move, and the spaces that offer them."""

from collections.abc import Mapping

from torch import Tensor, nn

from spaces.operators.base import OperatorSpec, SiteKind, Tensors, Variant
from spaces.operators.contraction import CONTRACT
from spaces.operators.drop import DROPPED
from spaces.operators.gated import GATED_ATTENTION, GATED_FFN
from spaces.operators.heads import HEADS
from spaces.operators.low_rank import LOW_RANK
from spaces.operators.low_rank_sparse import LOW_RANK_SPARSE
from spaces.operators.neurons import NEURONS
from spaces.sites import Kind, Role, Site

OPERATORS: dict[str, OperatorSpec] = {
    spec.name: spec for spec in (CONTRACT, HEADS, NEURONS, LOW_RANK, GATED_ATTENTION, GATED_FFN, LOW_RANK_SPARSE, DROPPED)
}
KINDS: dict[Kind, SiteKind] = {kind: entry for spec in OPERATORS.values() for kind, entry in spec.kinds.items()}

# Space -> rival operators of the branches of a role. The last two only describe what trained recipes make. Every space that
# can be searched also offers to leave a branch out.
SPACES: dict[str, dict[Role, tuple[str, ...]]] = {
    "contract": {"attention": ("contract",), "ffn": ("neurons",)},
    "heads": {"attention": ("heads",), "ffn": ("neurons",)},
    "hybrid": {"attention": ("low-rank",), "ffn": ("neurons",)},
    "low-rank": {"attention": ("low-rank",), "ffn": ("low-rank",)},
    "full": {"attention": ("contract", "low-rank"), "ffn": ("neurons", "low-rank")},
    "gated": {"attention": ("gated-attention",), "ffn": ("gated-ffn",)},
    "low-rank-sparse": {"attention": ("low-rank-sparse",), "ffn": ("low-rank-sparse",)},
}

SEARCHED = ("contract", "heads", "hybrid", "low-rank", "full")

Variants = Mapping[Kind, str]


def variant_of(kind: Kind, variants: Variants) -> Variant:
    """The chosen variant of a kind; the first one where none is chosen.

    Raises:
        ValueError: unknown name.
    """
    known = KINDS[kind].variants
    name = variants.get(kind, next(iter(known)))
    if name not in known:
        raise ValueError(f"unknown variant {name!r} of {kind}: choose one of {', '.join(known)}")
    return known[name]


def input_of(dense: nn.Module, site: Site) -> str:
    """Name of the linear whose inputs' moments a site of a dense model needs: the one that reads what is kept."""
    branch = dense.get_submodule(site.branch)
    reader = next((name for name in KINDS[site.kind].readers if hasattr(branch, name)), None)
    return site.name if reader is None else f"{site.branch}.{reader}"


def select(dense: nn.Module, site: Site, scores: Tensor) -> Tensors:
    """Factors of a site that keep what has the largest scores, with no correction.

    Args:
        dense: the model to slice.
        site: of a kind that can be kept by importance: any but ranks and rows.
        scores: non-negative importance: [heads, d] for widths of heads, [n] for the others.
    """
    keep = KINDS[site.kind].select
    assert keep is not None
    return keep(dense, site, scores.detach().cpu())
