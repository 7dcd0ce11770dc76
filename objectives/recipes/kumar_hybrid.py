"""Kumar's hybrid: low rank for the attention blocks, lighter pruning of the FFN blocks by gates.

Source: Kumar 2022, arXiv 2203.13444. Attention is approximated by truncated SVD and the FFN pruned as in VTP at a lower rate,
in every layer. The ranks, the rates, model and data are not public. Chosen here:

- One log-odds level for the budget; attention keeps the share at level - 1/2, the FFN at level + 1/2 (62 % and 38 % at
  level 0), so that the FFN loses less at every budget.
- All linear layers of attention keep the same share of their weights; FFN widths follow one threshold on all gates.
- The gates (of the hidden neurons) are trained on the dense model, then both cuts are made at once.
"""

from objectives.recipes.vtp import GlobalThreshold, train_gates
from objectives.recipes.workbench import Cut, Workbench
from spaces.factors import Factors
from spaces.operators.registry import Variants
from spaces.sites import Site, sigmoid

_APART = 0.5


def hybrid_plain(bench: Workbench) -> Cut:
    """The recipe `kumar-hybrid`: truncated SVD of the weights, as in the paper."""
    return _hybrid(bench, {"rank": "plain"})


def hybrid_whitened(bench: Workbench) -> Cut:
    """The recipe `kumar-hybrid-whitened`: truncated SVD in the metric of the calibration activations."""
    return _hybrid(bench, {"rank": "whitened"})


def _hybrid(bench: Workbench, variants: Variants) -> Cut:
    neurons = [site for site in bench.space.sites if site.kind == "ffn_hidden"]
    model, gates = train_gates(bench, neurons)
    threshold = GlobalThreshold(gates)

    def wanted(site: Site, level: float) -> float:
        if site.kind == "rank":
            return sigmoid(level - _APART)
        return threshold.share(site.name, sigmoid(level + _APART))

    allocation = bench.fit(wanted)
    images, device = bench.dense.data.calibration(), bench.dense.device
    factors = Factors.compute(
        model, bench.space, images, device, variants=variants, scores=gates, gradients=False, sites=bench.cuts
    )
    return Cut(model=factors.build(allocation), allocation=allocation)
