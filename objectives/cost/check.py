"""Whether the closed form of a model's costs agrees with an independent count; and if not, which layer it is about."""

from torch import nn

from objectives.cost.closed_form import CostModel, layer_macs
from objectives.cost.tracing import fvcore_layers
from spaces.errors import CountError
from spaces.models.create import input_size


def check_count(model: nn.Module, costs: CostModel) -> None:
    """Compare MACs of the dense model: where they differ, no budget means anything.

    Raises:
        CountError: they differ; the message names the innermost layer that does. Or they cannot be counted.
    """
    counted = fvcore_layers(model, input_size(model))
    if counted[""] == costs.dense["macs"]:
        return
    own = layer_macs(model)
    closed = {name: sum(macs for layer, macs in own.items() if _within(layer, name)) for name, _ in model.named_modules()}
    differ = [name for name, macs in closed.items() if counted.get(name, macs) != macs]
    name = next(name for name in differ if not any(_within(other, name) and other != name for other in differ))
    kind = type(model.get_submodule(name)).__name__
    where = f"{name} ({kind}) of {type(model).__name__}" if name else kind
    raise CountError(
        f"{where} is of a kind that is not known here: the closed form gives it {closed[name]:,} MACs, fvcore counts "
        f"{counted[name]:,}; so no budget could be kept"
    )


def _within(layer: str, module: str) -> bool:
    return not module or layer == module or layer.startswith(f"{module}.")
