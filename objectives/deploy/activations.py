"""How many numbers a model's operators give for one image: counted without any memory, before a foreign file is run."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from objectives.runtime.quiet import quiet
from spaces.errors import CheckpointError
from spaces.folder.description import read_description
from spaces.models.preprocessing import WIDEST

_LOG = "torch._subclasses.fake_tensor"
_MORE = 4  # times those of the dense model: formats copy what PyTorch views, and factors are operators of their own
_ALWAYS = 1_000_000  # for models of a few thousand numbers
# Of one call, whatever the model: 1 GB in float32 if all of them were kept. ViT-B/16 gives 0.1e9 for an image in ONNX.
_HARMLESS = 2**28


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the numbers that operators give."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.numbers += sum(int(leaf.numel()) for leaf in tree_leaves(found) if isinstance(leaf, Tensor))
        return found


def activations(model: nn.Module, shape: Sequence[int]) -> int:
    """Numbers that the operators of `model` give, in all, for images of this shape [B, C, H, W]; nothing is computed."""
    with (
        quiet(_LOG),
        torch.inference_mode(False),
        torch.no_grad(),
        FakeTensorMode(allow_non_fake_inputs=True),
        _Count() as count,
    ):
        model(torch.empty(*shape))
    return int(count.numbers)


def bound(file: Path, count: Callable[[tuple[int, ...]], int]) -> Callable[[int], None]:
    """What refuses to compute many times what the dense model of a file's folder does, after it did so for one image.

    What fits in any machine's memory is not compared with the dense model, for which timm would have to be imported.

    Args:
        file: of an exported folder.
        count: the numbers that its operators give for images of a shape [B, C, H, W].

    Returns:
        Of a number of images, raises CheckpointError where too much would be computed. Every number is looked at once: sizes in
        a file may be any function of it.

    Raises:
        CheckpointError: config.json describes no model, or one image is too much.
    """
    size, allowed, known = read_description(file.parent)["pretrained_cfg"]["input_size"], cache(_allowed), set[int]()

    def check(batch: int) -> None:
        if batch in known:
            return
        numbers = count((batch, *size))
        is_harmless = numbers <= _HARMLESS and max(size) <= WIDEST
        if not is_harmless and numbers > batch * allowed(file):
            most = f"the model that config.json describes no more than {batch * allowed(file):,}"
            raise CheckpointError(f"{file} is refused: it computes {numbers:,} numbers for {batch} image(s), and {most}")
        known.add(batch)

    check(1)
    return check


def _allowed(file: Path) -> int:
    """How many numbers a file may compute for one image: several times those of the dense model that it was made from."""
    from spaces.folder.compressed import dense_shapes
    from spaces.models.create import input_size

    dense = dense_shapes(file)
    for module in dense.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]  # as ONNX has it: with its matrix of weights
    with torch.no_grad(), _Count() as count:
        dense(torch.empty(1, *input_size(dense), device="meta"))
    return _MORE * int(count.numbers) + _ALWAYS
