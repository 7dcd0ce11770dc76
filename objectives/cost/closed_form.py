"""What an allocation costs, in microseconds, so that proposals can be fitted to a budget: counted costs in closed form, and
measured ones (latency) from tables.

`flops` in options means MACs. Biases count as parameters; MACs cover the products of convolutions, linear layers and
attention (what objectives/cost/tracing.py counts by tracing).
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Protocol

import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from objectives.cost.spec import COSTS, Cost, counted_costs
from spaces.allocation import Allocation
from spaces.branches import ATTENTION, Branch, branches
from spaces.errors import CountError, first_line, printable
from spaces.models.create import input_size
from spaces.operators.base import Sizes, Tokens
from spaces.operators.drop import dense_cost
from spaces.operators.registry import OPERATORS
from spaces.sites import Operator, Space

Count = tuple[int, int]  # MACs, parameters
Figures = tuple[float, ...]  # the costs of `CostModel.names`, in their order
_SCHEDULES = 512  # whose costs are kept at a time


@dataclass(frozen=True)
class CostModel:
    """Costs of every allocation of one space of one dense model, for one image of the model's input size.

    The costs of a branch depend on the sizes of its sites and on the tokens of its block. Within one schedule of tokens they
    depend on its sites alone, and branches add up.

    Attributes:
        dense: cost -> figure of the dense model, in the cost's unit; of the costs that are known.
        operators: every operator of every branch, with its branch's costs as a function of the sizes of its sites: up to
            constants, which do not matter. Within the schedule of this model.
        whole: cost -> figure with all branches dense, within this schedule; that of the dense model where it is None.
        schedule: of this model: patch tokens that leave the attention of every block; empty where tokens cannot be merged.
        tokens: names of the sites of tokens.
        others: from a schedule to the model within it; None where tokens cannot be merged.
    """

    dense: dict[Cost, float]
    operators: tuple[tuple[Operator, Callable[[Sizes], Figures]], ...]
    whole: dict[Cost, float] | None = None
    schedule: tuple[int, ...] = ()
    tokens: tuple[str, ...] = ()
    others: Callable[[tuple[int, ...]], "CostModel"] | None = None

    @property
    def names(self) -> tuple[Cost, ...]:
        """The costs that are known."""
        return tuple(self.dense)

    @property
    def base(self) -> dict[Cost, float]:
        """Costs with all branches dense, within this schedule."""
        return self.dense if self.whole is None else self.whole

    def within(self, schedule: tuple[int, ...]) -> "CostModel":
        """The costs within a schedule: patch tokens that leave the attention of every block."""
        return self if self.others is None else self.others(schedule)

    def costs(self, allocation: Allocation) -> dict[Cost, float]:
        """All known costs of the model that `allocation` builds."""
        return self.within(tuple(allocation[name] for name in self.tokens))._costs(allocation)

    def _costs(self, allocation: Allocation) -> dict[Cost, float]:
        total = tuple(self.base.values())
        for (operator, count), whole in zip(self.operators, self._branches, strict=True):
            if operator.moves(allocation):
                branch = count(operator.sizes(allocation))
                total = tuple(figure + new - old for figure, new, old in zip(total, branch, whole, strict=True))
        return dict(zip(self.names, total, strict=True))

    @cached_property
    def _branches(self) -> tuple[Figures, ...]:
        """Cost of the dense branch as every operator counts it."""
        return tuple(count(operator.dense_sizes) for operator, count in self.operators)

    def with_cost(self, cost: Cost, dense: float, timed: "Timed") -> "CostModel":
        """The same with one more cost.

        Args:
            cost: a measured one.
            dense: figure of the dense model.
            timed: how it follows from sizes and schedules.
        """

        @lru_cache(maxsize=_SCHEDULES)
        def within(schedule: tuple[int, ...]) -> CostModel:
            found = self.within(schedule)
            saved = partial(timed.saved, schedule)
            operators = tuple((operator, partial(_measured, operator, count, saved)) for operator, count in found.operators)
            whole, others = {**found.base, cost: timed.whole(schedule)}, within if self.tokens else None
            return CostModel({**self.dense, cost: dense}, operators, whole, schedule, self.tokens, others)

        return within(self.schedule)

    def count(self, allocation: Allocation, cost: Cost) -> float:
        """One of the costs of an allocation."""
        return self.costs(allocation)[cost]

    def load(self, allocation: Allocation, limits: Mapping[Cost, float]) -> float:
        """How much of a budget (one limit or more) an allocation uses: the largest cost / limit; 1 is exactly on the budget."""
        costs = self.costs(allocation)
        return max(costs[cost] / limit for cost, limit in limits.items())


class Timed(Protocol):
    """A measured cost, as a function of sizes and schedules."""

    def whole(self, schedule: tuple[int, ...]) -> float:
        """With all branches dense."""
        ...

    def saved(self, schedule: tuple[int, ...], operator: Operator, sizes: Sizes) -> float:
        """What an operator saves its branch at sizes of its sites; 0 for dense ones."""
        ...


def cost_model(dense: nn.Module, space: Space) -> CostModel:
    """Counted costs in closed form, from a timm model's shapes and one forward pass that tells the number of tokens.

    Raises:
        CountError: the model does not take its own images, or a layer of the branches was not called, so its number of tokens
            is unknown.
    """
    macs, seen = _probe(dense)
    params = sum(parameter.numel() for parameter in dense.parameters())
    names = tuple(spec.name for spec in counted_costs())
    total = dict(zip(names, _figures(sum(macs.values()), params), strict=True))
    blocks, names_of_tokens = _Blocks(dense, space, seen), tuple(site.name for site in space.tokens)

    @lru_cache(maxsize=_SCHEDULES)
    def within(schedule: tuple[int, ...]) -> CostModel:
        saved = blocks.saved(schedule)
        whole = dict(zip(names, _figures(sum(macs.values()) - saved, params), strict=True))
        others = within if space.tokens else None
        return CostModel(total, blocks.operators(schedule), whole, schedule, names_of_tokens, others)

    return within(space.schedule(space.identity()))


class _Blocks:
    """What the blocks of a dense model cost within a schedule."""

    def __init__(self, dense: nn.Module, space: Space, seen: Mapping[str, int]) -> None:
        self._dense, self._space, self._seen = dense, space, seen
        for path in space.branches:
            if seen.get(path, 0) == 0:
                raise CountError(f"{path} was not called in a forward pass: its cost is unknown")

    def operators(self, schedule: tuple[int, ...]) -> tuple[tuple[Operator, Callable[[Sizes], Figures]], ...]:
        """Every operator with the costs of its branch."""
        found = []
        for path, rivals in self._space.branches.items():
            branch, tokens = self._dense.get_submodule(path), self._tokens(path, schedule)
            for operator in rivals:
                found.append((operator, partial(_counted, OPERATORS[operator.name].cost(branch, operator.sites, tokens))))
        return tuple(found)

    def saved(self, schedule: tuple[int, ...]) -> int:
        """MACs that a schedule saves the dense model."""
        if not self._space.tokens:
            return 0
        dense, known = self._space.schedule(self._space.identity()), branches(self._dense)[0]
        return sum(self._macs(branch, dense) - self._macs(branch, schedule) for branch in known) - self._merging(schedule)

    def _macs(self, branch: Branch, schedule: tuple[int, ...]) -> int:
        """Of a dense branch."""
        return dense_cost(branch.module, self._tokens(branch.path, schedule))[0]

    def _merging(self, schedule: tuple[int, ...]) -> int:
        """MACs of finding similar tokens and merging them."""
        width: int = self._dense.embed_dim  # type: ignore[assignment]
        tokens = [self._tokens(site.branch, schedule) for site in self._space.tokens]
        return width * sum(entry.compared + entry.assigned for entry in tokens)

    def _tokens(self, path: str, schedule: tuple[int, ...]) -> Tokens:
        """Tokens of the block that a branch is in."""
        if not schedule:
            return Tokens(prefix=0, entering=self._seen[path], leaving=self._seen[path])
        patches, block = self._space.tokens[0].dense, int(path.split(".")[1])
        entering = schedule[block - 1] if block else patches
        prefix: int = self._dense.num_prefix_tokens  # type: ignore[assignment]
        return Tokens(prefix=prefix, entering=entering, leaving=schedule[block])


def _counted(count: Callable[[Sizes], Count], sizes: Sizes) -> Figures:
    return _figures(*count(sizes))


def _figures(macs: int, params: int) -> Figures:
    """All counted costs of a model or a branch."""
    return tuple(spec.count(macs, params) for spec in COSTS.values() if spec.count is not None)


def _measured(
    operator: Operator, count: Callable[[Sizes], Figures], saved: Callable[[Operator, Sizes], float], sizes: Sizes
) -> Figures:
    return *count(sizes), -saved(operator, sizes)


def layer_macs(model: nn.Module) -> dict[str, int]:
    """MACs of the dense model for one image in closed form, by the name of the layer, without what is inside it."""
    return _probe(model)[0]


def _probe(model: nn.Module) -> tuple[dict[str, int], dict[str, int]]:
    """MACs of every layer of the dense model for one image, and module name -> number of tokens that it sees."""
    macs: Counter[str] = Counter()
    tokens: dict[str, int] = {}
    size = input_size(model)
    parameter = next(model.parameters())
    image = torch.zeros(1, *size, device=parameter.device, dtype=parameter.dtype)
    handles = [
        module.register_forward_hook(partial(_observe, name, macs, tokens)) for name, module in model.named_modules() if name
    ]
    try:
        with torch.no_grad():  # some models keep what they compute here, and train with it later
            model.eval()(image)
    except Exception as error:  # models raise what they like on an image that they were not made for
        text = printable(first_line(error)[:200])
        raise CountError(f"{type(model).__name__} does not take an image of {list(size)}: {text}") from error
    finally:
        for handle in handles:
            handle.remove()
    return macs, tokens


def _observe(
    name: str, macs: Counter[str], tokens: dict[str, int], module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
) -> None:
    if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim == 3:
        tokens[name] = inputs[0].shape[1]
    if isinstance(module, nn.Linear):
        macs[name] += output.numel() * module.in_features
    elif isinstance(module, nn.Conv2d):
        macs[name] += output.numel() * module.weight[0].numel()
    elif isinstance(module, ATTENTION):
        macs[name] += _products(module, tokens[name], tokens[name])
        if getattr(module, "q_bias", None) is not None:  # EVA applies this weight without calling the layer
            macs[name] += tokens[name] * module.qkv.weight.numel()
    elif isinstance(module, AttentionPoolLatent):
        macs[name] += _products(module, module.latent_len, tokens[name])


def _products(attention: nn.Module, queries: int, keys: int) -> int:
    """MACs of both products of dense attention, of `queries` tokens to `keys` tokens."""
    return 2 * queries * keys * attention.num_heads * attention.head_dim  # type: ignore[operator, return-value]
