"""Why tensors are not the weights of a model, in words: another layout, another size, values that no weight has."""

import math
import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from spaces.errors import printable
from spaces.models.layouts import foreign_layout

# What a size is read from: argument of timm's vision transformers -> how the message names it, a tensor, one of its axes.
_SIZES = {
    "embed_dim": ("width {}", "patch_embed.proj.weight", 0),
    "patch_size": ("patches of {} px", "patch_embed.proj.weight", -1),
    "in_chans": ("images of {} channel(s)", "patch_embed.proj.weight", 1),
}
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def value_problem(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """What makes one of the tensors no weight of the model, by its type or its values; None if all are."""
    for name, tensor in tensors.items():
        if name in expected and (problem := _tensor_problem(tensor, expected[name])):
            return problem.format(printable(name)[:60])
    return None


def _tensor_problem(tensor: Tensor, wanted: Tensor) -> str | None:
    if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided or tensor.is_nested:
        return f"holds {{}} as a {_kind(tensor)} tensor: save plain ones"
    if tensor.is_complex() or tensor.is_floating_point() != wanted.is_floating_point():
        allowed = "real numbers: save it in float32" if wanted.is_floating_point() else str(wanted.dtype)
        return f"holds {{}} in {tensor.dtype}, where the model has {allowed}"
    if tensor.is_floating_point() and not bool(tensor.to(wanted.dtype).isfinite().all()):
        return "holds NaN or infinite weights in {}"
    return None


def _kind(tensor: Tensor) -> str:
    return "quantised" if tensor.is_quantized else "meta" if tensor.is_meta else str(tensor.layout).removeprefix("torch.")


def misfit(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], model: str, patches: int) -> str | None:
    """Why the tensors are not those of the model; None if every one has its name and shape.

    Args:
        tensors: by name.
        expected: parameters and buffers of the model.
        model: what the message calls it.
        patches: of the model's images.
    """
    wrong = [key for key, tensor in expected.items() if key in tensors and tensor.shape != tensors[key].shape]
    absent, surplus = [key for key in expected if key not in tensors], [key for key in tensors if key not in expected]
    if not wrong and not absent and not surplus:
        return None
    if len(absent) > len(expected) // 2 and (layout := foreign_layout(tensors)):
        return f"does not fit {model}: it has the layout of {layout}, not timm's: convert it, or save timm's state_dict()"
    if wrong == ["pos_embed"] and not absent and not surplus:
        return f"does not fit {model}: {_positions(tensors['pos_embed'], expected, patches)}"
    found = [f"{printable(key)[:60]} is {list(tensors[key].shape)}, not {list(expected[key].shape)}" for key in wrong]
    found += [f"{key} is missing" for key in absent] + [f"{printable(key)[:60]} is not in the model" for key in surplus]
    sizes = _sizes(tensors, expected)
    more = f" and {len(found) - 2} more" if len(found) > 2 else ""
    listed = f"{'; '.join(found[:2])}{more}"
    return f"does not fit {model}: {f'{sizes}: {listed}' if sizes else f'{listed}{_hint(absent, wrong + surplus)}'}"


def _hint(absent: list[str], others: list[str]) -> str:
    if not others and absent and all(re.match(r"(head|fc|classifier)", key) for key in absent):
        return " (a classifier is needed: fine-tune the model on these images first)"
    return " (see --model-kwargs)"


def _sizes(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Sizes in which both differ, and the arguments that would make the model the checkpoint's."""
    found, own, arguments = list[str](), list[str](), list[str]()
    for name, value, other, text in _both(tensors, expected):
        if value != other:
            found.append(text.format(value))
            own.append(text.format(other))
            arguments.append(f"{name}={value}")
    if not found:
        return ""
    if any(argument.startswith("embed_dim") for argument in arguments):
        arguments.append("num_heads=...")  # which the shapes do not tell
    return f"it has {', '.join(found)}, the model {', '.join(own)} (another --model, or --model-kwargs {' '.join(arguments)})"


def _both(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[tuple[str, int, int, str]]:
    """Argument, its value in the checkpoint, its value in the model, and the text of a value."""
    depths = [len({match[1] for key in keys if (match := _BLOCK.match(key))}) for keys in (tensors, expected)]
    if all(depths):
        yield "depth", depths[0], depths[1], "depth {}"
    for name, (text, key, axis) in _SIZES.items():
        if key in tensors and key in expected and tensors[key].ndim == expected[key].ndim == 4:
            yield name, tensors[key].shape[axis], expected[key].shape[axis], text


def _positions(found: Tensor, expected: Mapping[str, Tensor], patches: int) -> str:
    """Position embeddings of images of another size."""
    wanted, kernel = expected["pos_embed"], expected.get("patch_embed.proj.weight")
    shapes = f"pos_embed is {list(found.shape)}, not {list(wanted.shape)}"
    if found.ndim != 3 or found.shape[-1] != wanted.shape[-1] or kernel is None or kernel.ndim != 4:
        return f"{shapes} (see --model-kwargs)"
    side = math.isqrt(max(0, found.shape[1] - (wanted.shape[1] - patches)))
    if not side or side**2 != found.shape[1] - (wanted.shape[1] - patches):
        return f"{shapes}: it was made for images of another size (--model-kwargs img_size=H,W)"
    size = side * kernel.shape[-1]
    return f"{shapes}: it was made for images of {size} px: --model-kwargs img_size={size}"
