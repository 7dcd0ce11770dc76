"""Linear layers of a branch: how their weights are read, and written into a model of other sizes."""

from collections.abc import Mapping

from torch import Tensor, nn

from spaces.modules import SelectedLinear
from spaces.operators.base import Tensors


def linear_of(model: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a linear layer."""
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear.weight.detach(), None if linear.bias is None else linear.bias.detach()


def fill_linear(linear: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Write weight and bias into a linear layer of their shape."""
    assert isinstance(linear, nn.Linear)
    linear.weight.copy_(weight)
    if bias is not None:
        linear.bias.copy_(bias)


def shifted(bias: Tensor | None, weight: Tensor, mean: Tensor, new_weight: Tensor, new_mean: Tensor) -> Tensor | None:
    """A bias that takes up the mean of what is lost: b + W mu - W' mu'."""
    return None if bias is None else bias + weight @ mean - new_weight @ new_mean


def rows_of(bias: Tensor | None, index: Tensor) -> Tensor | None:
    """Some entries of a bias, if there is one."""
    return None if bias is None else bias[index]


def select_inputs(first: nn.Module, factors: Mapping[str, Tensors]) -> Tensor | slice:
    """Tell the first linear of a branch which inputs it reads; returns the columns of the dense weight that stay."""
    if not isinstance(first, SelectedLinear):
        return slice(None)
    kept = factors["inputs"]["order"][: first.in_features].long().sort().values
    first.kept.copy_(kept)
    return kept
