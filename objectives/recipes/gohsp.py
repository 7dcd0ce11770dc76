"""GOHSP: heads ranked by a graph, then an optimisation that drives the weights into heterogeneous structured sparsity.

Source: GOHSP, arXiv 2301.05345. The stationary distribution of a Markov chain over the heads of a layer ranks them
(spaces/operators/head_graph.py); the alternating direction method of multipliers then alternates training on the loss
+ rho/2 ||W - Z + U||^2, a projection Z of W + U onto at most k heads, k columns inside heads and k FFN neurons, and the dual
update U += W - Z. What is not in Z is removed, and the rest fine-tuned. What the paper sets by hand, here:

- One share meets the budget: the FFN keeps it, and heads and columns inside heads each keep its square root, in every layer.
- Columns inside heads are channels of a head: of its queries and keys together, and of its values and output together.
- Z and U are updated ten times over the recipe's steps, and rho grows from update to update (U shrinks with it, as the scaled
  dual does, Boyd et al. 2011, section 3.4.1), because a run has tens of steps where the paper has epochs.
- The quadratic penalty is decoupled from the adaptive optimiser, as AdamW decouples weight decay: after every step the weights
  move the fraction rho towards Z - U. Within the loss AdamW would divide it by the size of its own gradient.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from objectives.recipes.workbench import Cut, Workbench
from spaces.allocation import Allocation
from spaces.factors import Factors
from spaces.operators.head_graph import graph_scores
from spaces.operators.registry import input_of
from spaces.sites import Site, Space, sigmoid
from spaces.statistics import collect

_UPDATES = 10
_RHO = (0.02, 0.5)  # share of the way to Z - U that weights move after a step, at the first and at the last update


def prune_by_admm(bench: Workbench) -> Cut:
    """The recipe `gohsp`."""
    structure = Structure(bench.copy(), bench.space, bench.fit(_wanted), rank_heads(bench))
    alternate(bench, structure)
    factors = Factors.compute(structure.model.cpu().eval(), bench.space, [], scores=structure.scores(), sites=bench.cuts)
    return Cut(model=factors.build(structure.allocation), allocation=structure.allocation)


def _wanted(site: Site, level: float) -> float:
    share = sigmoid(level)
    return share if site.kind == "ffn_hidden" else math.sqrt(share)


def rank_heads(bench: Workbench) -> dict[str, Tensor]:
    """Stationary distribution of every layer's chain of heads, from the calibration images: site -> [heads]."""
    sites = [site for site in bench.space.sites if site.kind == "heads"]
    images = bench.dense.data.calibration()
    moments = collect(bench.dense.teacher, [input_of(bench.model, site) for site in sites], images, gradients=False)
    return {site.name: graph_scores(moments[input_of(bench.model, site)].second(), site.dense) for site in sites}


def alternate(bench: Workbench, structure: "Structure") -> list[float]:
    """Train the structure's model towards its allocation; returns its residual before training and after every update."""
    every, (first, last) = max(1, bench.steps // _UPDATES), _RHO
    residuals = [structure.residual()]
    for step in bench.train(structure.model):
        if (step.step - 1) % every == 0:
            structure.update(first * (last / first) ** ((step.step - 1) / max(1, bench.steps - 1)))
            residuals.append(structure.residual())
        structure.pull()
    return [*residuals, structure.residual()]


class Structure:
    """The weights W of a model, their projection Z onto what an allocation allows, and the scaled dual U.

    Args:
        model: a dense model, to be trained by the caller; on its device.
        space: a space of heads, widths of heads and FFN neurons.
        allocation: how many of each are allowed.
        heads: site of heads -> importance, [heads]; those of a layer that stay are the first in this ranking.

    Attributes:
        weights: W, by name.
        allowed: Z, by name.
    """

    def __init__(self, model: nn.Module, space: Space, allocation: Allocation, heads: Mapping[str, Tensor]) -> None:
        self.model, self.allocation, self.heads = model, allocation, heads
        self._roles = space.roles
        self._branches = {
            path: {site.part: site for operator in rivals for site in operator.sites} for path, rivals in space.branches.items()
        }
        self.weights = {name: model.get_parameter(name) for path in self._branches for name in self._names(path)}
        self._dual = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        self._rho = 1.0
        self._project()

    def update(self, rho: float) -> None:
        """Project W + U to Z, then let U take up what is left between them."""
        scale, self._rho = self._rho / rho, rho
        for dual in self._dual.values():
            dual *= min(1.0, scale)
        self._project()
        for name, weight in self._detached().items():
            self._dual[name] += weight - self.allowed[name]

    @torch.no_grad()
    def pull(self) -> None:
        """Move the weights the share rho of the way to Z - U."""
        for name, weight in self.weights.items():
            weight.lerp_(self.allowed[name] - self._dual[name], self._rho)

    def residual(self) -> float:
        """||W - P(W)|| / ||W||: the share of the weights that the allocation has no place for."""
        weights = self._detached()
        masks = self._masks(weights)
        lost = sum(float((weight * ~masks[name]).square().sum()) for name, weight in weights.items())
        return math.sqrt(lost / sum(float(weight.square().sum()) for weight in weights.values()))

    def scores(self) -> dict[str, Tensor]:
        """Importance by site, for `operators.registry.select`: the energies of W's groups, and the ranking of the heads."""
        weights, found = self._detached(), dict(self.heads)
        for path, sites in self._branches.items():
            energies = self._energies(path, weights)
            found.update({site.name: energies[part] for part, site in sites.items() if part in energies})
        return found

    def _detached(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self.weights.items()}

    def _project(self) -> None:
        moved = {name: weight + self._dual[name] for name, weight in self._detached().items()}
        masks = self._masks(moved)
        self.allowed = {name: entry * masks[name] for name, entry in moved.items()}

    def _names(self, path: str) -> list[str]:
        branch = self.model.get_submodule(path)
        parts = ("qkv", "proj", "fc1", "fc1_g", "fc1_x", "fc2")
        return [f"{path}.{part}.weight" for part in parts if isinstance(getattr(branch, part, None), nn.Linear)]

    def _energies(self, path: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Squared norms of the groups of a branch: head channels [heads, d] and FFN neurons [n]."""
        branch = self.model.get_submodule(path)
        attention = self._roles[path] == "attention"
        leaving = weights[f"{path}.proj.weight" if attention else f"{path}.fc2.weight"].square().sum(0)
        if attention:
            heads: int = branch.num_heads  # type: ignore[assignment]
            query, key, value = weights[f"{path}.qkv.weight"].square().sum(1).reshape(3, heads, -1)
            return {"qk": query + key, "vo": value + leaving.reshape(heads, -1)}
        entering = [weights[name].square().sum(1).reshape(-1, len(leaving)).sum(0) for name in self._names(path)[:-1]]
        return {"hidden": torch.stack(entering).sum(0) + leaving}

    def _masks(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What of every weight the allocation has a place for, as masks that broadcast to it."""
        masks = {}
        for path, sites in self._branches.items():
            kept = {part: self._largest(sites.get(part), scores) for part, scores in self._energies(path, weights).items()}
            if self._roles[path] == "ffn":
                *first, last = self._names(path)
                masks[last] = kept["hidden"]
                for name in first:
                    masks[name] = kept["hidden"].repeat(len(weights[name]) // len(kept["hidden"])).unsqueeze(1)
                continue
            if "heads" in sites:
                heads = self._largest(sites["heads"], self.heads[sites["heads"].name].to(kept["qk"].device)).unsqueeze(1)
                kept = {part: mask & heads for part, mask in kept.items()}
            masks[f"{path}.qkv.weight"] = torch.stack([kept["qk"], kept["qk"], kept["vo"]]).reshape(-1, 1)
            masks[f"{path}.proj.weight"] = kept["vo"].flatten()
        return masks

    def _largest(self, site: Site | None, scores: Tensor) -> Tensor:
        """Mask of the largest scores along the last dimension, as many as the allocation keeps; all without a site."""
        if site is None:
            return torch.ones_like(scores, dtype=torch.bool)
        best = scores.topk(self.allocation[site.name], dim=-1).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)
