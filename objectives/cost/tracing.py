"""MACs of a built model, counted by tracing its operators: the check on the closed form.

Two independent counters, fvcore's and torch's. Both count the products of convolutions, linear layers and attention,
which is what the literature prints as "FLOPs" of a vision transformer; element-wise operators, normalisations and the
softmax are left out. A count says nothing of latency.
"""

import logging
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis, jit_handles
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from spaces.errors import CountError, first_line, printable

# Element-wise operators and reductions that the traced models may use; anything else that fvcore has no handle for is
# an error, never a zero. Those that act in place have the same name with an underscore.
_ELEMENTWISE = """
add sub mul div neg sigmoid silu gelu tanh softmax mean sum amax rsqrt pow sin cos cumsum pad rsub
upsample_bicubic2d upsample_bilinear2d _upsample_bicubic2d_aa _upsample_bilinear2d_aa
layer_norm rms_norm batch_norm group_norm repeat repeat_interleave
ones_like meshgrid stack unflatten clone lift_fresh linspace tile outer exp ceil max_pool2d avg_pool2d
adaptive_avg_pool2d reshape_as index_select clamp_min expand_as linalg_vector_norm log sqrt topk eq gt lt where
"""
_NOT_COUNTED = frozenset(f"aten::{name}" for name in _ELEMENTWISE.split())
_COUNTED = {
    "aten::_convolution": jit_handles.conv_flop_jit,
    "aten::linear": jit_handles.linear_flop_jit,
    "aten::addmm": jit_handles.addmm_flop_jit,
    "aten::matmul": jit_handles.matmul_flop_jit,
    "aten::mm": jit_handles.matmul_flop_jit,
    "aten::bmm": jit_handles.bmm_flop_jit,
    "aten::einsum": jit_handles.einsum_flop_jit,
}


def fvcore_macs(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """MACs for one image by fvcore, with a handle for the fused attention that it would count as zero.

    Raises:
        CountError: the model uses an operator that is neither counted nor known to be element-wise, or cannot be traced.
    """
    return fvcore_layers(model, input_size)[""]


def fvcore_layers(model: nn.Module, input_size: tuple[int, int, int]) -> dict[str, int]:
    """`fvcore_macs` of every module by its name, with those inside it; '' is the whole model.

    Raises:
        CountError: as `fvcore_macs`.
    """
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    parameter = next(model.parameters())
    image = torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype)
    analysis = FlopCountAnalysis(model.eval(), image)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.clear_op_handles()  # fvcore's own would count normalisations too, at five per element
    analysis.set_op_handle(**_COUNTED, **{"aten::scaled_dot_product_attention": _attention_macs})
    try:
        counted = {name: int(macs) for name, macs in analysis.by_module().items()}
    except Exception as error:  # a model that cannot be traced raises what it likes
        raise CountError(
            f"the MACs of {type(model).__name__} cannot be counted: {printable(first_line(error)[:200])}"
        ) from error
    unknown = sorted(name for name in analysis.unsupported_ops() if name.removesuffix("_") not in _NOT_COUNTED)
    if unknown:
        raise CountError(
            f"{type(model).__name__} uses {', '.join(unknown)}, which has no MAC count: add a handle to objectives/count.py"
        )
    return counted


def torch_macs(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """MACs for one image by torch's FlopCounterMode (which counts a multiply-accumulate as two).

    Fused attention is switched off while counting: FlopCounterMode of torch 2.13 counts it as zero on the CPU.
    """
    fused = [module for module in model.modules() if getattr(module, "fused_attn", False) is True]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parameter = next(model.parameters())
    image = torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype)
    try:
        for module in fused:
            module.fused_attn = False  # type: ignore[assignment]
        for parameter in trained:  # the counter trips over views of parameters that want a gradient
            parameter.requires_grad_(False)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(image)
    finally:
        for module in fused:
            module.fused_attn = True  # type: ignore[assignment]
        for parameter in trained:
            parameter.requires_grad_(True)
    return int(counter.get_total_flops()) // 2


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Both products of attention: queries [..., T, d] by keys [..., S, d], and weights [..., T, S] by values [..., S, e]."""
    query, key, value = (entry.type().sizes() for entry in inputs[:3])
    rows = 1
    for size in query[:-1]:
        rows *= size
    return int(rows * key[-2] * (query[-1] + value[-1]))
