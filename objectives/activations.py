"""How many numbers a model's operators give for one image: counted without any memory, before a foreign file is run."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spaces.compressed import dense_shapes
from spaces.errors import CheckpointError
from spaces.models import input_size

_MORE = 4  # times those of the dense model: formats copy what PyTorch views, and factors are operators of their own
_ALWAYS = 1_000_000  # for models of a few thousand numbers


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the numbers that operators give."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.numbers += sum(int(leaf.numel()) for leaf in tree_leaves(found) if isinstance(leaf, Tensor))
        return found


def activations(model: nn.Module, size: Sequence[int]) -> int:
    """Numbers that the operators of `model` give, in all, for one image of [C, H, W]; nothing is computed."""
    with torch.inference_mode(False), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), _Count() as count:
        model(torch.empty(1, *size))
    return int(count.numbers)


def allowed_activations(description: Mapping[str, Any]) -> int:
    """How many numbers a file of an exported folder may compute for one image: several times those of the dense model.

    Args:
        description: of `read_description`.

    Raises:
        CheckpointError: it describes no model.
    """
    dense = dense_shapes(description)
    for module in dense.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]  # as ONNX has it: with its matrix of weights
    with torch.no_grad(), _Count() as count:
        dense(torch.empty(1, *input_size(dense), device="meta"))
    return _MORE * int(count.numbers) + _ALWAYS


def check_activations(file: object, numbers: int, allowed: int) -> None:
    """Raise CheckpointError where a file computes more than the model that it is said to hold."""
    if numbers > allowed:
        raise CheckpointError(
            f"{file} is refused: it computes {numbers:,} numbers for one image, and the model that config.json describes "
            f"no more than {allowed:,}"
        )
