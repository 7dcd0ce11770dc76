"""Linear layers of low rank beside which some rows stay whole: what the recipe LoSparse makes."""

from dataclasses import replace

from torch import nn

from spaces.branches import Branch
from spaces.modules import LowRankSparseLinear
from spaces.operators.base import FoundSites, OperatorSpec, SiteKind, Sizes, Timing, widths
from spaces.operators.low_rank import linears_cost, rank_sites


def _rank_and_row_sites(branch: Branch, multiple: int) -> FoundSites:
    """Per linear its rank, and the rows that are kept whole beside the low-rank part."""
    ranks, skipped = rank_sites(branch, multiple)
    sites = []
    for rank in ranks:
        assert rank.linear is not None
        choices = widths(rank.linear[0], multiple)
        sites += [rank, replace(rank, name=f"{rank.name}_rows", kind="rows", choices=choices)]
    return sites, skipped


def _resize_sparse(model: nn.Module, path: str, sizes: Sizes, moved: Sizes) -> None:
    for part in sizes:
        if f"{part}_rows" in moved:
            linear = model.get_submodule(f"{path}.{part}")
            assert isinstance(linear, nn.Linear)
            shape = linear.in_features, linear.out_features, sizes[part], sizes[f"{part}_rows"]
            model.set_submodule(f"{path}.{part}", LowRankSparseLinear(*shape, bias=linear.bias is not None))


LOW_RANK_SPARSE = OperatorSpec(
    name="low-rank-sparse",
    sites=_rank_and_row_sites,
    kinds={"rows": SiteKind(counts="whole rows")},
    resize=_resize_sparse,
    fill=None,
    cost=linears_cost,
    timing=Timing(continuous=False),
)
