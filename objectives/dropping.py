"""What leaving out whole branches costs: nested sets of them, each measured jointly."""

from collections.abc import Callable

from objectives.cost.closed_form import CostModel
from objectives.cost.spec import MAIN
from objectives.divergence import Reference
from spaces.allocation import Allocation
from spaces.factors import Factors
from spaces.sites import Site

_TRIED = 3  # branches that are measured for each next one
_USELESS = 0.5  # of the divergence of an answer that is the same for all images: a set that loses more is not kept


def measure_dropped(
    factors: Factors,
    reference: Reference,
    costs: CostModel,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Branch -> mean divergence from the dense model without it and without all before it, in the order in which they go.

    Errors of branches that are left out do not add up. So of the few that lose least alone for what they save, each is measured
    together with those that are gone already, and the one goes that then adds least. At most half of the branches go.

    Args:
        factors: of a space.
        reference: the dense model of the factors on some images.
        costs: of the space.
        progress: called with (models measured, models in all).
    """
    space = factors.space
    sites = {site.branch: site for site in space.sites if site.kind == "branch"}
    whole, alone = space.lossless(), {branch: factors.error(site)[0] for branch, site in sites.items()}
    saved = {branch: _macs(costs, whole) - _macs(costs, _without(whole, [site])) for branch, site in sites.items()}
    most, limit = len(sites) // 2, _USELESS * reference.constant
    done, total = 0, sum(min(_TRIED, len(sites) - gone) for gone in range(most))
    gone: dict[str, float] = {}
    while len(gone) < most:
        tried = sorted((branch for branch in sites if branch not in gone), key=lambda branch: alone[branch] / saved[branch])
        joint, before = {}, max(gone.values(), default=0.0)
        for branch in tried[:_TRIED]:
            progress(done, total)
            built = factors.build(_without(whole, [sites[name] for name in (*gone, branch)]))
            joint[branch] = max(0.0, reference.divergence(built, f"{branch} left out"))
            done += 1
        best = min(joint, key=lambda branch: (joint[branch] - before) / saved[branch])
        if joint[best] > limit:
            break
        gone[best] = joint[best]
    if total:
        progress(total, total)
    return gone


def _without(allocation: Allocation, sites: list[Site]) -> Allocation:
    return allocation.replace({site.name: 0 for site in sites})


def _macs(costs: CostModel, allocation: Allocation) -> float:
    return costs.count(allocation, MAIN.name)
