"""LoSparse: every linear layer as low rank + row-sparse, the rows pruned on a cubic schedule while it trains.

Source: LoSparse, arXiv 2306.11222. W = L R + S starts exact: L R is the truncated SVD of W and S the rest. S loses rows by
a smoothed importance |w dL/dw| while the share of rows that stay falls as a cubic of the step. What stays is exported as small
dense layers: as L R + S is W itself in a row of S that was kept, such rows are whole, and the others go through the rank.
What the paper leaves to the user, here:

- The low-rank parts get half of the budget, all at the same share of their layer's weights; the rows get the rest.
- The rows compete over the whole model, by importance per weight, so that rows of different lengths cost alike.
- The schedule begins at once and reaches its end after four fifths of the recipe's steps. How many rows stay at its end is
  what the budget has room for, of those that are the most important so far: rows of the last block may cost next to nothing.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objectives.recipes.vtp import GlobalThreshold
from objectives.recipes.workbench import Cut, Workbench
from spaces.allocation import Allocation
from spaces.modules import LowRankSparseLinear
from spaces.operators.linears import fill_linear, linear_of
from spaces.operators.low_rank import factorise
from spaces.sites import Site, sigmoid
from spaces.vit import resize

_SMOOTHING = 0.85
_LAST = 0.8  # share of the steps after which the rows are what they will be
_LOW_RANK = 0.5  # share of the budget
_UPDATES = 10  # of the share of rows that stays in the end


class LowRankPlusRows(nn.Module):
    """W = L R + S while it trains.

    Shapes: L [m, r], R [r, n], S [m, n].

    Attributes:
        importance: smoothed mean of |w dL/dw| over the weights of a row of S, [m].
    """

    importance: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, rank: int) -> None:
        super().__init__()
        factors = factorise(weight.double())
        up, down = factors.up[:, :rank].to(weight), factors.down[:rank].to(weight)
        self.up, self.down = nn.Parameter(up.contiguous()), nn.Parameter(down.contiguous())
        self.rows = nn.Parameter(weight - up @ down)
        self.bias = None if bias is None else nn.Parameter(bias.clone())
        self.register_buffer("importance", torch.zeros(len(weight), device=weight.device))
        self.rows.register_post_accumulate_grad_hook(self._observe)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.whole(), self.bias)

    def whole(self) -> Tensor:
        """L R + S."""
        return self.up @ self.down + self.rows

    def _observe(self, rows: Tensor) -> None:
        assert rows.grad is not None  # with batches in parts: of the parts so far, so that a step is observed once for each
        found = (rows.detach() * rows.grad).abs().mean(1).float()
        self.importance = _SMOOTHING * self.importance + (1 - _SMOOTHING) * found


def prune_by_rows(bench: Workbench) -> Cut:
    """The recipe `losparse`."""
    ranks = _ranks(bench)
    model = bench.copy()
    layers = decompose(model, ranks, bench)
    every, final = max(1, bench.steps // _UPDATES), 1.0
    for step in bench.train(model):
        if (step.step - 1) % every == 0:
            final = _kept_rows(_by_importance(bench, layers, ranks), bench)
        keep_rows(layers, cubic(step.step / (_LAST * max(1, bench.steps)), final))
    allocation = _by_importance(bench, layers, ranks)
    return Cut(model=rebuild(bench, model, layers, allocation), allocation=allocation)


def _by_importance(bench: Workbench, layers: Mapping[str, LowRankPlusRows], ranks: Allocation) -> Allocation:
    """The allocation on the budget that keeps the rows above one threshold of importance."""
    threshold = GlobalThreshold({name: layer.importance.cpu() for name, layer in layers.items()})
    return bench.fit(lambda site, level: threshold.share(site.name, sigmoid(level)), _row_sites(bench), ranks)


def cubic(progress: float, final: float) -> float:
    """Share of rows that stay: from 1 at progress 0 to `final` at 1 and after, as 1 - (1 - final)(1 - (1 - progress)^3)."""
    left = 1 - min(1.0, progress)
    return final + (1 - final) * left**3


@torch.no_grad()
def keep_rows(layers: dict[str, LowRankPlusRows], share: float) -> None:
    """Set the rows of S to zero that are not among this share of the most important ones of all layers."""
    importance = torch.cat([layer.importance for layer in layers.values()])
    count = max(1, round(share * len(importance)))
    threshold = importance.topk(count).values[-1]
    for layer in layers.values():
        layer.rows.mul_((layer.importance >= threshold).unsqueeze(1))


def decompose(model: nn.Module, ranks: Allocation, bench: Workbench) -> dict[str, LowRankPlusRows]:
    """Put `LowRankPlusRows` in the place of the model's linear layers; returns them by the name of their site of rows."""
    layers = {}
    for site in bench.space.sites:
        if site.kind == "rank":
            layer = LowRankPlusRows(*linear_of(model, site.name), ranks[site.name])
            model.set_submodule(site.name, layer)
            layers[f"{site.name}_rows"] = layer
    return layers


def _row_sites(bench: Workbench) -> list[Site]:
    return [site for site in bench.space.sites if site.kind == "rows"]


def _ranks(bench: Workbench) -> Allocation:
    """Ranks for the low-rank share of the budget, with as few rows as there may be."""
    rank_sites = [site for site in bench.space.sites if site.kind == "rank"]
    base = bench.space.lossless().replace({site.name: site.choices[0] for site in _row_sites(bench)})
    least = base.replace({site.name: site.choices[0] for site in rank_sites})
    limit = max(bench.load(least), _LOW_RANK)
    return bench.space.fit(limit, bench.load, rank_sites, lambda site, level: sigmoid(level), base)


def _kept_rows(allocation: Allocation, bench: Workbench) -> float:
    sites = _row_sites(bench)
    return sum(allocation[site.name] for site in sites) / sum(site.dense for site in sites)


@torch.no_grad()
def rebuild(bench: Workbench, trained: nn.Module, layers: dict[str, LowRankPlusRows], allocation: Allocation) -> nn.Module:
    """The trained model with its decomposed layers as small dense ones."""
    for name, layer in layers.items():  # back to plain linears, so that the structure can be given as to any dense model
        linear = nn.Linear(layer.rows.shape[1], layer.rows.shape[0], bias=layer.bias is not None)
        fill_linear(linear, layer.whole(), layer.bias)
        trained.set_submodule(name.removesuffix("_rows"), linear)
    model = trained.cpu().eval()
    resize(model, bench.space, allocation)
    for name, layer in layers.items():
        small = model.get_submodule(name.removesuffix("_rows"))
        if isinstance(small, LowRankSparseLinear):
            _fill_sparse(small, layer.cpu(), allocation[name])
    return model


def _fill_sparse(linear: LowRankSparseLinear, layer: LowRankPlusRows, count: int) -> None:
    order = layer.importance.argsort(descending=True, stable=True)
    whole, others = order[:count].sort().values, order[count:].sort().values
    biases = (None, None) if layer.bias is None else (layer.bias[whole], layer.bias[others])
    fill_linear(linear.rows, layer.whole()[whole], biases[0])
    fill_linear(linear.down, layer.down, None)
    fill_linear(linear.up, layer.up[others], biases[1])
    linear.order.copy_(torch.cat([whole, others]).argsort())
