"""VTP: learnable gates on the channels of a block, an L1 penalty, a global threshold, removal.

Source: Vision Transformer Pruning, arXiv 2104.08500. A gate multiplies every channel at four places of a block: the input
shared by queries, keys and values, the concatenated output of the heads, the input of the FFN and its hidden layer. The paper
trains weights and gates for 100 epochs on cross-entropy + lambda sum |gate|, drops what lies below a global threshold
and fine-tunes without the penalty. What it leaves open, or what a run of some hundred steps makes different, here:

- The gates' learning rate scales with the run: over its steps a gate can travel from 1 to 0, and no farther.
- The threshold is the one that meets the budget; sizes are rounded to the space's multiples.
- Channels of the head outputs leave the values too, and every head of a layer keeps the same number (the best ones of each
  head), so that attention stays one batched product. Their share follows the threshold.
- The kept gates are folded into the weights; inputs of a block are selected by an index.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from objectives.recipes.workbench import Cut, Workbench
from spaces.factors import Factors
from spaces.operators.registry import input_of
from spaces.sites import Site, sigmoid

_PENALTY = 1e-4  # lambda of the paper


def prune_by_gates(bench: Workbench) -> Cut:
    """The recipe `vtp`."""
    model, gates = train_gates(bench, bench.sites)
    wanted = GlobalThreshold(gates)
    allocation = bench.fit(lambda site, level: wanted.share(site.name, sigmoid(level)))
    scores = {site.name: _scores(site, gates[site.name], bench.model) for site in bench.sites}
    return Cut(model=Factors.compute(model, bench.space, [], scores=scores).build(allocation), allocation=allocation)


def train_gates(bench: Workbench, sites: list[Site]) -> tuple[nn.Module, dict[str, Tensor]]:
    """Train the dense model with a gate on every channel of these sites.

    Returns:
        The trained model with the gates folded into its weights, on the CPU, and the gates' magnitudes by site, [channels].
    """
    model = bench.copy()
    linears = {site.name: _linear(model, input_of(bench.model, site)) for site in sites}
    travel = 2 / (bench.dense.objective.finetune.rate * max(1, bench.steps))  # a cosine schedule's mean is half its peak
    parameters = {
        name: nn.Parameter(torch.full((linear.in_features,), 1 / travel, device=linear.weight.device))
        for name, linear in linears.items()
    }
    model.gates = nn.ParameterList(parameters.values())
    handles = [linear.register_forward_pre_hook(_Gate(parameters[name], travel)) for name, linear in linears.items()]
    for _ in bench.train(model, lambda: _PENALTY * travel * torch.stack([p.abs().sum() for p in parameters.values()]).sum()):
        pass
    for handle in handles:
        handle.remove()
    del model.gates
    gates = {name: travel * parameter.detach() for name, parameter in parameters.items()}
    with torch.no_grad():
        for name, linear in linears.items():
            linear.weight *= gates[name]
    return model.cpu().eval(), {name: gate.abs().cpu() for name, gate in gates.items()}


class _Gate:
    """Multiplies a linear layer's input by its gates."""

    def __init__(self, parameter: Tensor, travel: float) -> None:
        self.parameter, self.travel = parameter, travel

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] * (self.travel * self.parameter), *inputs[1:])


class GlobalThreshold:
    """Which share of its channels every site keeps when all gates share one threshold."""

    def __init__(self, gates: Mapping[str, Tensor]) -> None:
        values = torch.cat(list(gates.values()))
        within = torch.cat([torch.linspace(0, 1, len(gate)) for gate in gates.values()])  # equal gates go evenly from all sites
        order = within.argsort(stable=True)
        order = order[values[order].argsort(stable=True)]
        self.count = len(order)
        ranks = order.argsort().split([len(gate) for gate in gates.values()])  # type: ignore[no-untyped-call]
        self.ranks = {name: rank.sort().values for name, rank in zip(gates, ranks, strict=True)}

    def share(self, site: str, kept: float) -> float:
        """Share of the channels of `site` above the threshold that keeps the share `kept` of all channels."""
        below = min(self.count - 1, max(0, round((1 - kept) * self.count)))
        own = self.ranks[site]
        return 1 - float(torch.searchsorted(own, below)) / len(own)


def _linear(model: nn.Module, name: str) -> nn.Linear:
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear


def _scores(site: Site, gates: Tensor, dense: nn.Module) -> Tensor:
    """Gates as `spaces.operators.registry.select` takes them: head outputs as [heads, d]."""
    heads: int = dense.get_submodule(site.branch).num_heads if site.kind == "value_output" else 0  # type: ignore[assignment]
    return gates.reshape(heads, -1) if heads else gates
