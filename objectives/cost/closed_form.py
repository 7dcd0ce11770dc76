"""What an allocation costs, in microseconds, so that proposals can be fitted to a budget: MACs and parameters in closed form,
and latency from a table where one was measured.

`flops` in options means MACs. Biases count as parameters; MACs cover the products of convolutions, linear layers and
attention (what objectives/cost/tracing.py counts by tracing).
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, get_args

import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from spaces.allocation import Allocation
from spaces.branches import ATTENTION
from spaces.errors import CountError, first_line, printable
from spaces.models.create import input_size
from spaces.operators.base import Sizes
from spaces.operators.registry import OPERATORS
from spaces.sites import Operator, Space

Cost = Literal["macs", "params", "latency"]
COSTS: tuple[Cost, ...] = get_args(Cost)

Figures = tuple[float, ...]  # the costs of `CostModel.names`, in their order


@dataclass(frozen=True)
class CostModel:
    """Costs of every allocation of one space of one dense model, for one image of the model's input size.

    The costs of a branch depend on the sizes of its sites alone; branches add up.

    Attributes:
        dense: cost name -> figure of the dense model; MACs and parameters as integers, latency in seconds where it is known.
        operators: every operator of every branch, with its branch's costs as a function of the sizes of its sites: up to
            constants, which do not matter.
    """

    dense: dict[Cost, float]
    operators: tuple[tuple[Operator, Callable[[Sizes], Figures]], ...]

    @property
    def names(self) -> tuple[Cost, ...]:
        """The costs that are known."""
        return tuple(self.dense)

    def costs(self, allocation: Allocation) -> dict[Cost, float]:
        """All known costs of the model that `allocation` builds."""
        total = tuple(self.dense.values())
        for (operator, count), whole in zip(self.operators, self._whole, strict=True):
            if operator.moves(allocation):
                branch = count(operator.sizes(allocation))
                total = tuple(figure + new - old for figure, new, old in zip(total, branch, whole, strict=True))
        return dict(zip(self.names, total, strict=True))

    @cached_property
    def _whole(self) -> tuple[Figures, ...]:
        """Cost of the dense branch as every operator counts it."""
        return tuple(count(operator.dense_sizes) for operator, count in self.operators)

    def with_latency(self, dense: float, saved: Callable[[Operator, Sizes], float]) -> "CostModel":
        """The same with latency.

        Args:
            dense: seconds of the dense model.
            saved: seconds that an operator saves its branch at sizes of its sites; 0 for dense ones.
        """
        operators = tuple((operator, partial(_timed, operator, count, saved)) for operator, count in self.operators)
        return CostModel({**self.dense, "latency": dense}, operators)

    def count(self, allocation: Allocation, cost: Cost) -> float:
        """One of the costs of an allocation."""
        return self.costs(allocation)[cost]

    def load(self, allocation: Allocation, limits: Mapping[Cost, float]) -> float:
        """How much of a budget (one limit or more) an allocation uses: the largest cost / limit; 1 is exactly on the budget."""
        costs = self.costs(allocation)
        return max(costs[cost] / limit for cost, limit in limits.items())


def cost_model(dense: nn.Module, space: Space) -> CostModel:
    """MACs and parameters in closed form, from a timm model's shapes and one forward pass that tells the number of tokens.

    Raises:
        CountError: the model does not take its own images, or a layer of the branches was not called, so its number of tokens
            is unknown.
    """
    macs, tokens = _probe(dense)
    params = sum(parameter.numel() for parameter in dense.parameters())
    operators = []
    for path, rivals in space.branches.items():
        if tokens.get(path, 0) == 0:
            raise CountError(f"{path} was not called in a forward pass: its cost is unknown")
        for operator in rivals:
            count = OPERATORS[operator.name].cost(dense.get_submodule(path), operator.sites, tokens[path])
            operators.append((operator, count))
    return CostModel({"macs": sum(macs.values()), "params": params}, tuple(operators))


def _timed(
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
